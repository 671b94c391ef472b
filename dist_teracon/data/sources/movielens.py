"""MovieLens folders as GroupLens gives them out.

100k: `u.data`, `u.user`, `u.item`; 1m and 10m: `ratings.dat`, `users.dat`, `movies.dat`; 25m, 32m, latest: `ratings.csv`, `movies.csv`.
Attributes of users: age, gender, occupation, zip_code (100k and 1m); of items: title, genres (separated by `|`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa

from dist_teracon import io
from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.table import ColumnSpec, Dialect, RawTable, read_delimited
from dist_teracon.data.recipe import Columns, Recipe
from dist_teracon.data.sources.base import (
    Attributes,
    EventData,
    SourceFormat,
    attributes_from,
    event_column_specs,
    events_from,
    folder_name,
)
from dist_teracon.errors import ConfigError, DataError

_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir",
    "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_ROLES = {"user": "user", "item": "item", "timestamp": "timestamp", "value": "rating"}


@dataclass(frozen=True)
class _Layout:
    """File names of a release with their dialects; `people` is None where a release has no users."""

    ratings: str
    items: str
    users: str
    events: Dialect
    movies: Dialect
    people: Dialect | None
    rating_columns: tuple[str, str, str, str] = ("user", "item", "timestamp", "rating")
    movie_key: str = "item"


_RATINGS, _MOVIES = ("user", "item", "rating", "timestamp"), ("item", "title", "genres")
_CSV_RATINGS = ("userId", "movieId", "timestamp", "rating")
_CSV = Dialect(delimiter=",", quote='"')
_LAYOUTS = (
    _Layout(
        "u.data", "u.item", "u.user",
        Dialect(header=_RATINGS),
        Dialect(delimiter="|", encoding="latin-1", header=("item", "title", "release", "video_release", "url", *_GENRES)),
        Dialect(delimiter="|", encoding="latin-1", header=("user", "age", "gender", "occupation", "zip_code")),
    ),
    _Layout(
        "ratings.dat", "movies.dat", "users.dat",
        Dialect(delimiter="::", header=_RATINGS),
        Dialect(delimiter="::", encoding="latin-1", header=_MOVIES),
        Dialect(delimiter="::", encoding="latin-1", header=("user", "gender", "age", "occupation", "zip_code")),
    ),
    _Layout("ratings.csv", "movies.csv", "users.csv", _CSV, _CSV, None, _CSV_RATINGS, "movieId"),
)  # fmt: skip


def files(folder: str) -> list[str]:
    """Return the release's files.

    Raises:
        DataError: the folder holds no known release.
    """
    layout = _layout(folder)
    names = set(io.list_folder(folder))
    return [io.join(folder, name) for name in (layout.ratings, layout.users, layout.items) if name in names]


def _layout(folder: str) -> _Layout:
    names = io.list_folder(folder)
    for layout in _LAYOUTS:
        if layout.ratings in names:
            return layout
    known = ", ".join(layout.ratings for layout in _LAYOUTS)
    raise DataError(f"{folder}: none of {known} there (has: {', '.join(names[:10]) or 'nothing'})")


def read(folder: str, recipe: Recipe | None, context: ReadContext) -> EventData:
    """Read a MovieLens folder.

    Raises:
        ConfigError: the recipe names columns, which this format fixes.
        DataError: a missing or empty file, or too many malformed rows.
    """
    if recipe is not None and recipe.columns != Columns():
        raise ConfigError("columns: format 'movielens' has its own columns, none can be named")
    layout = _layout(folder)
    found = dict(zip(("user", "item", "timestamp", "value"), layout.rating_columns, strict=True))
    ratings = read_delimited(io.join(folder, layout.ratings), event_column_specs(found, Columns()), dialect=layout.events, context=context)
    users = items = None
    there = {uri.rsplit("/", 1)[-1] for uri in files(folder)}
    if layout.users in there and layout.people:
        users = _attributes(io.join(folder, layout.users), "user", layout.people, context)
    if layout.items in there:
        items = _movies(io.join(folder, layout.items), layout, context)
    return EventData(folder_name(folder), events_from([ratings], found), users, items)


def _attributes(uri: str, key: str, dialect: Dialect, context: ReadContext) -> Attributes:
    table = read_delimited(
        uri, {name: ColumnSpec("token", required=name == key) for name in dialect.header or ()}, dialect=dialect, context=context
    )
    return attributes_from(table, key, file=uri, bad=context.bad)


def _movies(uri: str, layout: _Layout, context: ReadContext) -> Attributes:
    names = [layout.movie_key, "title", *(_GENRES if "Action" in (layout.movies.header or ()) else ("genres",))]
    specs = {name: ColumnSpec("token", required=name == layout.movie_key) for name in names}
    table = read_delimited(uri, specs, dialect=layout.movies, context=context)
    if "Action" in specs:
        table = replace(table, columns=_with_genres(table))
    return attributes_from(table, layout.movie_key, file=uri, bad=context.bad)


def _with_genres(table: RawTable) -> dict[str, pa.Array]:
    """Put 100k's flags, one column a genre, into the one column of genres of the later releases."""
    flags = zip(*(table.columns[genre].to_pylist() for genre in _GENRES), strict=True)
    genres = ["|".join(genre for genre, flag in zip(_GENRES, row, strict=True) if flag == "1") or None for row in flags]
    return {"item": table.columns["item"], "title": table.columns["title"], "genres": pa.array(genres, pa.string())}


FORMAT = SourceFormat(files, read)
