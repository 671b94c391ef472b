"""The benchmark of a run in use prints a row for each width, on a set of a few users."""

from __future__ import annotations

from dist_teracon.bench.use import main
from dist_teracon.inference.model import from_pretrained


def test_the_tables(tmp_path, capsys):
    main(["--channels", "8", "--users", "64", "--items", "50", "--events", "6", "--repeats", "1", "--keep", str(tmp_path)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 8 ")]
    assert [len(line.split("|")) - 2 for line in lines] == [5, 4, 5]
    imported, loaded, encoded = (float(cell) for cell in lines[1].split("|")[2:5])
    assert 0 <= imported < loaded <= encoded  # an import alone takes hundredths of a second
    assert list(from_pretrained(tmp_path / "run-8").tasks) == ["next"]
