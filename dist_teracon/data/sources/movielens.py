"""MovieLens folders as GroupLens gives them out.

100k: `u.data`, `u.user`, `u.item`; 1m and 10m: `ratings.dat`, `users.dat`, `movies.dat`; 25m, 32m, latest: `ratings.csv`, `movies.csv`.
Attributes of users: age, gender, occupation, zip_code (100k and 1m); of items: title, genres (separated by `|`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa

from dist_teracon.data.raw.context import ReadContext
from dist_teracon.data.raw.delimited import Dialect
from dist_teracon.data.raw.files import without_compression
from dist_teracon.data.raw.listing import Layout, Listing, list_source
from dist_teracon.data.raw.parts import open_parts, read_parts
from dist_teracon.data.raw.table import ColumnSpec, RawTable
from dist_teracon.data.recipe import Recipe
from dist_teracon.data.recipe_columns import Columns
from dist_teracon.data.sources.base import (
    Attributes,
    EventData,
    SourceFormat,
    attributes_from,
    check_missing,
    event_column_specs,
    event_columns,
    events_from,
    folder_name,
    wanted_attributes,
)
from dist_teracon.errors import ConfigError, DataError

_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir",
    "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


@dataclass(frozen=True)
class _Release:
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
_RELEASES = (
    _Release(
        "u.data", "u.item", "u.user",
        Dialect(header=_RATINGS),
        Dialect(delimiter="|", encoding="latin-1", header=("item", "title", "release", "video_release", "url", *_GENRES)),
        Dialect(delimiter="|", encoding="latin-1", header=("user", "age", "gender", "occupation", "zip_code")),
    ),
    _Release(
        "ratings.dat", "movies.dat", "users.dat",
        Dialect(delimiter="::", header=_RATINGS),
        Dialect(delimiter="::", encoding="latin-1", header=_MOVIES),
        Dialect(delimiter="::", encoding="latin-1", header=("user", "gender", "age", "occupation", "zip_code")),
    ),
    _Release("ratings.csv", "movies.csv", "users.csv", _CSV, _CSV, None, _CSV_RATINGS, "movieId"),
)  # fmt: skip


def layout(source: str, recipe: Recipe | None = None) -> Layout:
    """Return the release's files, by their names or as the recipe's `files` names them.

    Raises:
        ConfigError: the recipe's `files` names something that is not there.
        DataError: the folder holds no known release.
    """
    return _laid_out(source, recipe)[1]


def _laid_out(source: str, recipe: Recipe | None) -> tuple[_Release, Layout]:
    listing = list_source(source)
    release = _release(listing)
    if recipe and recipe.files.users and not release.people:
        raise ConfigError(f"files.users: a release of {release.ratings} has no users; format `events` reads tables of any names")
    roles: dict[str, list[str]] = {}
    for role, own in (("events", release.ratings), ("users", release.users if release.people else ""), ("items", release.items)):
        patterns = getattr(recipe.files, role) if recipe else None
        roles[role] = listing.match(patterns, where=f"files.{role}") if patterns else _named(listing, own)
    listing.leave_others([name for names in roles.values() for name in names], "is no file of the release that is read")
    return release, Layout(listing, roles)


def _named(listing: Listing, own: str) -> list[str]:
    found = [name for name in listing.files if own and without_compression(name).lower() == own]
    if len(found) > 1:
        raise DataError(f"{listing.source}: {own} is there more than once ({', '.join(found)}); keep one")
    return found


def _release(listing: Listing) -> _Release:
    for release in _RELEASES:
        if _named(listing, release.ratings):
            return release
    known = ", ".join(release.ratings for release in _RELEASES)
    raise DataError(f"{listing.source}: none of {known} there (has: {listing.shown()})")


def read(source: str, recipe: Recipe | None, context: ReadContext) -> EventData:
    """Read a MovieLens folder.

    Raises:
        ConfigError: the recipe names a column that is not there.
        DataError: a missing or empty file, or too many malformed rows.
    """
    release, found = _laid_out(source, recipe)
    context.notes["files"] = found.note
    columns = recipe.columns if recipe else Columns()
    own = dict(zip(("user", "item", "timestamp", "value"), release.rating_columns, strict=True))
    parts = open_parts(found.uris("events"), dialect=_in_encoding(release.events, recipe), context=context)
    roles = event_columns(columns, parts[0].header, own, where=parts[0].uri, context=context)
    events = events_from(read_parts(parts, event_column_specs(roles, recipe), context), roles)
    users = items = None
    known: list[str] = []
    if release.people and (uris := found.uris("users")):
        parts = open_parts(uris, dialect=_in_encoding(release.people, recipe), context=context)
        specs = wanted_attributes(recipe, "users", "user", parts[0].header, file=parts[0].uri)
        users = attributes_from(read_parts(parts, specs, context), "user", recipe=recipe, context=context)
        known += parts[0].header
    if uris := found.uris("items"):
        items, names = _movies(uris, release, recipe, context)
        known += names
    check_missing(recipe, known, context)
    return EventData(folder_name(source), events, users, items)


def _in_encoding(dialect: Dialect, recipe: Recipe | None) -> Dialect:
    """Return a dialect in the encoding that the recipe sets, if it sets one."""
    return replace(dialect, encoding=recipe.encoding) if recipe and "encoding" in recipe.model_fields_set else dialect


def _movies(uris: list[str], release: _Release, recipe: Recipe | None, context: ReadContext) -> tuple[Attributes, list[str]]:
    """Return the attributes of movies, and the names of all that there are."""
    parts = open_parts(uris, dialect=_in_encoding(release.movies, recipe), context=context)
    header, flagged = parts[0].header, "Action" in (release.movies.header or ())
    if flagged:
        header = [name for name in header if name not in _GENRES] + ["genres"]
    specs = wanted_attributes(recipe, "items", release.movie_key, header, file=parts[0].uri)
    if flagged and "genres" in specs:
        del specs["genres"]
        table = read_parts(parts, specs | {genre: ColumnSpec("token") for genre in _GENRES}, context)
        table = replace(table, columns=_with_genres(table))
    else:
        table = read_parts(parts, specs, context)
    return attributes_from(table, release.movie_key, recipe=recipe, context=context), [name for name in header if name != release.movie_key]


def _with_genres(table: RawTable) -> dict[str, pa.Array]:
    """Put 100k's flags, one column a genre, into the one column of genres of the later releases."""
    flags = zip(*(table.columns[genre].to_pylist() for genre in _GENRES), strict=True)
    genres = ["|".join(genre for genre, flag in zip(_GENRES, row, strict=True) if flag == "1") or None for row in flags]
    return {name: column for name, column in table.columns.items() if name not in _GENRES} | {"genres": pa.array(genres, pa.string())}


FORMAT = SourceFormat(lambda source, recipe: layout(source, recipe).all, read)
