"""Made-up logs of a platform with Korean queries, as someone who knows nothing of this program has them."""

from __future__ import annotations

import csv
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

TASTES = (
    ("겨울 코트", "롱패딩 추천", "니트 코디", "부츠", "목도리, 캐시미어"),
    ("오늘 날씨", "미세먼지 농도", "주말 비 소식", "기온", "태풍 경로"),
    ("딸기 케이크", "서울 맛집", '"흑백요리사" 식당', "브런치 카페", "떡볶이 레시피"),
    ("지하철 노선도", "KTX 예매", "인천공항 주차", "제주도 항공권", "렌터카"),
)
PRODUCTS = tuple((f"P{number:03d}", ("패션", "생활", "식품", "여행")[number % 4]) for number in range(24))


def write_logs(folder: Path, *, users: int = 240, kind: str = "types", encoding: str = "utf-8", seed: int = 0) -> Path:
    """Write logs of `users` members into a folder.

    Args:
        folder: Where to; made where it is not there.
        users: How many members.
        kind: `types`: `search_log.csv` of searches and purchases, `members.csv` and `products.csv`, columns under the platform's names;
            `plain`: the same as `events.csv`, `users.csv`, `items.csv` under this program's names; `times`: searches alone, in `logs/` in
            parts, times in milliseconds; `ratings`: `events.csv` with values of 1 to 5.
        encoding: Of the text.
        seed: Of everything.
    """
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    start = datetime(2024, 3, 1)
    rows: list[tuple[datetime, str, str, str, int]] = []
    people: list[tuple[Any, ...]] = []
    for number in range(users):
        taste, member = number % 4, f"M{number:05d}"
        people.append((member, ("F", "M", "F", "-")[taste] if number % 7 else "M", 18 + 12 * taste + number % 9, f"{member}@example.com"))
        for _ in range(int(generator.integers(4, 12))):
            moment = start + timedelta(seconds=int(generator.integers(0, 60 * 86_400)))
            query = TASTES[taste if generator.random() < 0.8 else int(generator.integers(4))][int(generator.integers(5))]
            rows.append((moment, member, query, "search", int(generator.integers(1, 6))))
        for _ in range(int(generator.integers(1, 4))):
            moment = start + timedelta(seconds=int(generator.integers(0, 60 * 86_400)))
            rows.append((moment, member, PRODUCTS[4 * int(generator.integers(6)) + taste][0], "purchase", int(generator.integers(1, 6))))
    rows.sort()
    if kind == "times":
        searches = [row for row in rows if row[3] == "search"]
        (folder / "logs").mkdir()
        for part in range(3):
            content = [(int(moment.timestamp() * 1000), member, query) for moment, member, query, _, _ in searches[part::3]]
            _write(folder / "logs" / f"part-{part}.csv", ("ts", "userId", "keyword"), content, encoding)
    elif kind == "ratings":
        content = [(member, query, value, int(moment.timestamp())) for moment, member, query, _, value in rows]
        _write(folder / "events.csv", ("user", "item", "value", "timestamp"), content, encoding)
    else:
        plain = kind == "plain"
        names = ("events.csv", "users.csv", "items.csv") if plain else ("search_log.csv", "members.csv", "products.csv")
        header = ("timestamp", "user", "item", "type") if plain else ("검색일시", "회원번호", "검색어", "행동")
        content = [(moment.isoformat(sep=" "), member, item, action) for moment, member, item, action, _ in rows]
        _write(folder / names[0], header, content, encoding)
        _write(folder / names[1], ("user" if plain else "회원번호", "gender", "age", "email"), people, encoding)
        _write(folder / names[2], ("item" if plain else "검색어", "category"), PRODUCTS, encoding)
        (folder / "README.md").write_text("our logs", encoding="utf-8")
    return folder


def _write(path: Path, header: tuple[str, ...], rows: Any, encoding: str) -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
