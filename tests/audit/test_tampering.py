"""Whatever is changed in a bundle is found and named; a change of all of it, by asking again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wherefrom as wf
from wherefrom.audit import contents, recomputation, verification
from wherefrom.audit.bundle import write_bundle
from wherefrom.audit.canonical import canonical_json, sha256
from wherefrom.audit.entries import Entry, read_entries
from wherefrom.audit.recomputation import recompute
from wherefrom.audit.verification import read_bundle
from wherefrom.errors import IntegrityError, NotAnIndexError

Change = Callable[[Path], Any]


@pytest.fixture
def bundle(evidence: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(evidence, tmp_path / "evidence"))


def found(path: Path) -> list[tuple[str, str]]:
    """Kind and place of all problems; every detail is one line."""
    problems = read_bundle(path).problems
    assert not any("\n" in problem.detail for problem in problems)
    return [(problem.kind, problem.where) for problem in problems]


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file, written as it was: canonically."""
    fields = json.loads(path.read_bytes())
    change(fields)
    path.write_bytes(canonical_json(fields) + b"\n")


def edit_answers(path: Path, change: Callable[[list[dict]], Any]) -> None:
    """Change the answers, each line canonical again."""
    file = path / "answers.jsonl"
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    change(lines)
    file.write_bytes(b"".join(canonical_json(line) + b"\n" for line in lines))


def seal(path: Path) -> None:
    """Give the statement the digests that the changed files have."""

    def change(statement: dict) -> None:
        for subject in statement["subject"]:
            file = path / subject["name"]
            if file.is_file():
                subject["digest"]["sha256"] = sha256(file.read_bytes())

    edit(path / "statement.json", change)


def raise_score(lines: list[dict]) -> None:
    lines[0]["proponents"][0]["score"] *= 1 + 1e-15


def swap(lines: list[dict]) -> None:
    hits = lines[0]["proponents"], lines[1]["proponents"]
    lines[0]["proponents"], lines[1]["proponents"] = hits[1], hits[0]


def rename(lines: list[dict]) -> None:
    lines[0]["id"] = "harmless"


def other_index(lines: list[dict]) -> None:
    lines[0]["index"]["manifest_sha256"] = "0" * 64


def drop_gate(lines: list[dict]) -> None:
    lines[0]["gate"] = []


def subjects(path: Path, change: Callable[[list[dict]], Any]) -> None:
    edit(path / "statement.json", lambda statement: change(statement["subject"]))


def predicate(path: Path, change: Callable[[dict], Any]) -> None:
    edit(path / "statement.json", lambda statement: change(statement["predicate"]))


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def cut(path: Path, off: int) -> None:
    os.truncate(path, path.stat().st_size - off)


ANSWERS, MANIFEST = ("digest", "answers.jsonl"), ("digest", "manifest.json")
REPORT, STATEMENT = ("digest", "report.html"), ("statement", "statement.json")
OTHER_REPORT = ("report", "report.html")

TAMPERINGS: dict[str, tuple[Change, list[tuple[str, str]]]] = {
    "the last bits of a score": (lambda b: edit_answers(b, raise_score), [ANSWERS]),
    "a score": (lambda b: edit_answers(b, lambda s: scale(s, 1.1)), [ANSWERS, OTHER_REPORT]),
    "hits of two answers": (
        lambda b: edit_answers(b, swap),
        [ANSWERS, OTHER_REPORT, ("answers", "answer union"), ("answers", "answer contrast")],
    ),
    "the order of answers": (
        lambda b: edit_answers(b, list.reverse),
        [ANSWERS, STATEMENT, STATEMENT, OTHER_REPORT],
    ),
    "an answer left out": (
        lambda b: edit_answers(b, lambda lines: lines.pop()),
        [ANSWERS, *4 * [STATEMENT], OTHER_REPORT],
    ),
    "an answer's id": (lambda b: edit_answers(b, rename), [ANSWERS, STATEMENT, OTHER_REPORT]),
    "an answer's index": (
        lambda b: edit_answers(b, other_index),
        [ANSWERS, OTHER_REPORT, ("answers", "answer union")],
    ),
    "the gate's findings": (
        lambda b: edit_answers(b, drop_gate),
        [ANSWERS, STATEMENT, ("answers", "answer union")],
    ),
    "a space in the answers": (
        lambda b: (b / "answers.jsonl").write_bytes(
            (b / "answers.jsonl").read_bytes().replace(b'{"certificate":', b'{"certificate": ', 1)
        ),
        [("answers", "answers.jsonl"), ANSWERS],
    ),
    "cut answers": (
        lambda b: cut(b / "answers.jsonl", 7),
        [("answers", "answers.jsonl"), ANSWERS],
    ),
    "answers that are no JSON": (
        lambda b: append(b / "answers.jsonl", b"{\n"),
        [("answers", "answers.jsonl"), ANSWERS],
    ),
    "the report": (lambda b: append(b / "report.html", b"<!-- -->"), [REPORT, OTHER_REPORT]),
    "the environment": (
        lambda b: edit(b / "environment.json", lambda fields: fields.update(machine="abacus")),
        [("digest", "environment.json")],
    ),
    "an environment that is none": (
        lambda b: (b / "environment.json").write_bytes(b"[]\n"),
        [("file", "environment.json"), ("digest", "environment.json")],
    ),
    "a byte of the manifest": (
        lambda b: append(b / "manifest.json", b" "),
        [("manifest", "manifest.json"), MANIFEST],
    ),
    "a manifest that is none": (
        lambda b: (b / "manifest.json").write_bytes(b'{"format": "wherefrom-index"}'),
        [("manifest", "manifest.json"), MANIFEST],
    ),
    "a cut statement": (lambda b: cut(b / "statement.json", 40), [STATEMENT]),
    "a statement in other words": (lambda b: append(b / "statement.json", b" "), [STATEMENT]),
    "a key twice": (
        lambda b: (b / "statement.json").write_bytes(
            (b / "statement.json").read_bytes().replace(b"{", b'{"_type":"x",', 1)
        ),
        [STATEMENT],
    ),
    "another kind of statement": (
        lambda b: edit(b / "statement.json", lambda s: s.update(predicateType="urn:other")),
        [STATEMENT],
    ),
    "a subject left out": (lambda b: subjects(b, lambda s: s.pop(0)), [STATEMENT]),
    "a subject twice": (lambda b: subjects(b, lambda s: s.append(s[0])), [STATEMENT]),
    "no subjects": (lambda b: subjects(b, list.clear), [STATEMENT]),
    "a subject elsewhere": (
        lambda b: subjects(b, lambda s: s[3].update(name="../../etc/passwd")),
        [STATEMENT, STATEMENT],
    ),
    "a subject by an absolute path": (
        lambda b: subjects(b, lambda s: s.append({**s[0], "name": "/etc/passwd"})),
        [STATEMENT],
    ),
    "a short digest": (
        lambda b: subjects(b, lambda s: s[0]["digest"].update(sha256="00")),
        [STATEMENT],
    ),
    "the digest of the weights": (
        lambda b: subjects(b, lambda s: s[5]["digest"].update(sha256="0" * 64)),
        [STATEMENT],
    ),
    "the number of certified answers": (
        lambda b: predicate(b, lambda p: p["certificates"].update(certified=0)),
        [STATEMENT],
    ),
    "the digest of a question": (
        lambda b: predicate(b, lambda p: p["questions"][0].update(sha256="0" * 64)),
        [STATEMENT],
    ),
    "the gate of the statement": (
        lambda b: predicate(b, lambda p: p.update(gate=None)),
        [STATEMENT],
    ),
    "the command": (
        lambda b: predicate(b, lambda p: p["command"].append("--k=1")),
        [STATEMENT],
    ),
    "the version": (
        lambda b: predicate(b, lambda p: p.update(wherefrom="0.0.1")),
        [STATEMENT, OTHER_REPORT],
    ),
    "a file more": (lambda b: (b / "notes.txt").touch(), [("file", "notes.txt")]),
    "a folder more": (lambda b: (b / "more").mkdir(), [("file", "more")]),
    "a link": (
        lambda b: ((b / "report.html").unlink(), (b / "report.html").symlink_to("/etc/passwd")),
        [("file", "report.html"), ("file", "report.html")],
    ),
    "a pipe": (lambda b: os.mkfifo(b / "pipe"), [("file", "pipe")]),
    **{
        f"no {name}": (lambda b, name=name: (b / name).unlink(), [("file", name)])
        for name in ("answers.jsonl", "environment.json", "manifest.json", "report.html")
    },
    "no statement": (
        lambda b: (b / "statement.json").unlink(),
        [("file", "statement.json")],
    ),
}


def test_an_untouched_bundle_is_sound(bundle: Path, entries: list[Entry]) -> None:
    read = read_bundle(bundle)
    assert read.problems == ()
    assert read.report_checked
    assert read.signatures == ()
    assert [entry.id for entry in read.entries] == [entry.id for entry in entries]


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_named(bundle: Path, name: str) -> None:
    change, expected = TAMPERINGS[name]
    change(bundle)
    assert found(bundle) == expected


def test_details_say_what_does_not_fit(bundle: Path) -> None:
    edit_answers(bundle, drop_gate)
    (bundle / "notes.txt").touch()
    predicate(bundle, lambda fields: fields["certificates"].update(certified=0))
    subjects(bundle, lambda listed: listed.append({**listed[0], "name": "../x"}))
    told = [(problem.where, problem.detail) for problem in read_bundle(bundle).problems]
    assert told == [
        ("notes.txt", "does not belong to a bundle"),
        ("answers.jsonl", "differs from the SHA-256 in the statement"),
        ("statement.json", "names '../x', which no bundle holds"),
        ("statement.json", "its 'certificates' is not what answers.jsonl comes to"),
        ("statement.json", "its 'gate' is not what answers.jsonl comes to"),
        ("answer union", "has other findings of the gate than its conditions give"),
    ]


def test_any_bit_counts(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = (bundle / "report.html").read_bytes()
    monkeypatch.setattr(verification, "render_report", lambda entries: report)
    rng = random.Random(0)
    for file in sorted(bundle.iterdir()):
        data = file.read_bytes()
        for _ in range(6):
            changed = bytearray(data)
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            assert read_bundle(bundle).problems
        file.write_bytes(data)


def test_any_bit_of_a_zip_file(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of them mean nothing, such as those of times; none makes a traceback."""
    path = zipped(bundle, tmp_path / "b.zip")
    assert read_bundle(path).problems == ()
    monkeypatch.setattr(verification, "render_report", lambda entries: b"")
    data = path.read_bytes()
    rng = random.Random(0)
    for place in (*rng.sample(range(len(data)), 20), *range(len(data) - 240, len(data), 8)):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with contextlib.suppress(IntegrityError, NotAnIndexError):
            read_bundle(path)


def test_links_are_not_followed(bundle: Path) -> None:
    (bundle / "report.html").rename(bundle.parent / "elsewhere.html")
    (bundle / "report.html").symlink_to(bundle.parent / "elsewhere.html")
    link, missing = read_bundle(bundle).problems
    assert link.detail == "is a link; a bundle holds the files themselves"
    assert missing.detail == "is missing"


def zipped(bundle: Path, path: Path, **extra: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(bundle.iterdir()):
            archive.write(file, file.name)
        for name, data in extra.items():
            archive.writestr(name, data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../evil.txt", "leads out of the bundle"),
        ("/etc/evil", "leads out of the bundle"),
        ("a\\b", "leads out of the bundle"),
        ("folder/", "leads out of the bundle"),
        ("..", "leads out of the bundle"),
        ("answers.jsonl", "stands twice"),
        ("notes.txt", "does not belong"),
    ],
)
def test_zip_files_of_ill_will(bundle: Path, tmp_path: Path, name: str, told: str) -> None:
    path = zipped(bundle, tmp_path / "b.zip", **{name: b"x"})
    (problem,) = read_bundle(path).problems
    assert problem.where == name
    assert told in problem.detail
    assert not (tmp_path / "evil.txt").exists()


def test_links_in_zip_files(bundle: Path, tmp_path: Path) -> None:
    (bundle / "report.html").unlink()
    link = zipfile.ZipInfo("report.html")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = zipped(bundle, tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert [problem.detail for problem in read_bundle(path).problems] == [
        "is no plain file",
        "is missing",
    ]


def test_broken_zip_files(bundle: Path, tmp_path: Path) -> None:
    path = zipped(bundle, tmp_path / "b.zip")
    data = bytearray(path.read_bytes())
    place = data.index(b"urn:wherefrom:index")
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"broken zip file: Bad CRC-32"):
        read_bundle(path)
    cut(path, 30)
    with pytest.raises(NotAnIndexError, match="neither a directory nor a zip file"):
        read_bundle(path)


def test_huge_files_are_not_read(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "LARGEST", 1 << 20)
    with (bundle / "answers.jsonl").open("r+b") as file:
        file.truncate(1 << 20)
    with pytest.raises(IntegrityError, match="holds more than 1 MiB"):
        read_bundle(bundle)
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("answers.jsonl", bytes(1 << 21))
    assert bomb.stat().st_size < 1 << 12
    with pytest.raises(IntegrityError, match="holds more than 1 MiB"):
        read_bundle(bomb)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(NotAnIndexError, match="does not exist"):
        read_bundle(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotAnIndexError, match="neither a directory nor a zip file"):
        read_bundle(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert [problem.detail for problem in read_bundle(tmp_path / "empty").problems] == (
        5 * ["is missing"]
    )


def test_a_report_of_another_version_does_not_pass_unasked(bundle: Path) -> None:
    (bundle / "report.html").write_text("<p>all is well</p>")
    predicate(bundle, lambda fields: fields.update(wherefrom="0.0.1"))
    edit(bundle / "environment.json", lambda fields: fields.update(wherefrom="0.0.1"))
    seal(bundle)
    (problem,) = read_bundle(bundle).problems
    assert (problem.kind, problem.where) == OTHER_REPORT
    assert "wherefrom 0.0.1 wrote it" in problem.detail
    read = read_bundle(bundle, other_version=True)
    assert read.problems == ()
    assert not read.report_checked


@pytest.fixture(scope="module")
def sound(evidence: Path) -> tuple[Entry, ...]:
    return read_bundle(evidence).entries


def test_asking_again_gives_the_same_bits(index: wf.Index, sound: tuple[Entry, ...]) -> None:
    seen: list[tuple[str, int, int]] = []
    again = recompute(index, sound, progress=lambda *told: seen.append(told))
    assert (again.answers, again.identical) == (4, 4)
    assert again.largest_difference == 0.0
    assert again.problems == ()
    assert seen == [("asking again", done, 4) for done in range(1, 5)]


def forged(sound: tuple[Entry, ...], change: Callable[[list[dict]], Any]) -> list[Entry]:
    lines = [entry.to_dict() for entry in sound]
    lines = json.loads(json.dumps(lines))
    change(lines)
    return list(read_entries([canonical_json(line) + b"\n" for line in lines], "forged"))


def test_a_forgery_that_fits_together_is_found_by_asking_again(
    index: wf.Index, sound: tuple[Entry, ...], tmp_path: Path
) -> None:
    entries = forged(sound, raise_score)
    write_bundle(tmp_path / "forged", entries, index.manifest)
    assert found(tmp_path / "forged") == []
    again = recompute(index, read_bundle(tmp_path / "forged").entries)
    (problem,) = again.problems
    assert (problem.kind, problem.where) == ("index", "answer union")
    assert problem.detail.startswith("differs in proponents[0].score; scores by up to ")
    assert again.identical == 3
    assert 0.0 < again.largest_difference < 1e-14


def scale(lines: list[dict], factor: float) -> None:
    for hit in lines[0]["proponents"]:
        hit["score"] *= factor


def lose_first(lines: list[dict]) -> None:
    lines[0]["proponents"][0]["doc_id"] = "speech 99"


def exchange(lines: list[dict]) -> None:
    first, second = lines[0]["proponents"][:2]
    lines[0]["proponents"][:2] = [{**second, "rank": 1}, {**first, "rank": 2}]


def other_text(lines: list[dict]) -> None:
    lines[0]["proponents"][0]["text"] = "harmless"


def uncertify(lines: list[dict]) -> None:
    lines[0]["certificate"]["certified"] ^= True


def other_share(lines: list[dict]) -> None:
    lines[0]["explanation"]["hits"][0]["layers"][0] += 1e-9


def answered(lines: list[dict]) -> None:
    lines[2]["detail"] = "the weather is bad"


def at(*path: str | int, to: Any) -> Callable[[list[dict]], Any]:
    """A change of one value of the first answer."""

    def change(lines: list[dict]) -> None:
        owner = lines[0]
        for step in path[:-1]:
            owner = owner[step]
        assert owner[path[-1]] != to
        owner[path[-1]] = to

    return change


FORGED = {
    ("proponents", 0, "percentile"): 1.0,
    ("proponents", 0, "metadata", "year"): 1066,
    ("proponents", 1, "metadata"): {},
    ("opponents", 0, "cosine"): -0.9,
    ("opponents", 0, "norm"): 1e9,
    ("log_likelihood",): -1.0,
    ("scored_tokens",): 1,
    ("certificate", "documents"): 10**6,
    ("certificate", "background"): None,
    ("explanation", "hits", 0, "elsewhere"): 9.0,
    ("explanation", "hits", 0, "tokens", 1, "share"): -9.0,
    ("similarity", "hits", 0, "bm25_rank"): 99,
    ("similarity", "most_similar", 0, "score"): 9.0,
    ("groups", 0, "groups", 0, "total"): -1000.0,
    ("groups", 0, "groups", 0, "documents"): 1,
    ("groups",): [],
    ("damping",): 0.1 + 1e-12,
    ("index", "damping"): 0.1 + 1e-12,
    ("index", "documents"): 7,
    ("index", "curvature"): "identity",
    ("index", "weights_sha256"): "0" * 64,
}


@pytest.mark.parametrize("path", FORGED, ids=lambda path: ".".join(map(str, path)))
def test_nothing_but_rounding_is_tolerated(
    asked_again: None, index: wf.Index, sound: tuple[Entry, ...], path: tuple[str | int, ...]
) -> None:
    entries = forged(sound, at(*path, to=FORGED[path]))[:1]
    for tolerance in (None, 1e-6):
        (problem,) = recompute(index, entries, tolerance=tolerance).problems
        assert problem.detail.startswith(f"differs in {path[0]}")


@pytest.mark.parametrize(
    ("path", "to", "told"),
    [
        (("proponents", 0, "rank"), 901, "has hits that are out of order"),
        (("certificate", "candidates"), 10**6, "differs in certificate.candidates"),
        (("certificate", "candidates"), None, None),
    ],
)
def test_counts_that_rounding_may_change(
    asked_again: None,
    index: wf.Index,
    sound: tuple[Entry, ...],
    path: tuple[str | int, ...],
    to: int | None,
    told: str | None,
) -> None:
    if to is None:  # One more than there are.
        to = sound[0].answer.certificate.candidates + 1
    entries = forged(sound, at(*path, to=to))[:1]
    details = [one.detail for one in recompute(index, entries, tolerance=1e-6).problems]
    assert len(recompute(index, entries).problems) == 1
    assert len(details) == (told is not None)
    assert all(detail.startswith(told or "") for detail in details)


def test_findings_of_the_gate_are_not_rounded(
    asked_again: None, index: wf.Index, sound: tuple[Entry, ...]
) -> None:
    assert sound[0].gate
    entries = forged(sound, drop_gate)[:1]
    (problem,) = recompute(index, entries, tolerance=1e-6).problems
    assert "other findings of the gate" in problem.detail


@pytest.fixture
def asked_again(monkeypatch: pytest.MonkeyPatch, sound: tuple[Entry, ...]) -> None:
    """Asked again, questions get the sound answers: so much the tests above have shown."""
    by_id = {entry.id: entry for entry in sound}
    monkeypatch.setattr(
        recomputation, "ask_all", lambda _, asked, *how, **named: [by_id[one.id] for one in asked]
    )


@pytest.mark.parametrize(
    ("change", "exactly", "within"),
    [
        (raise_score, "differs in proponents[0].score", None),
        (lambda lines: scale(lines, 1 + 1e-8), "differs in proponents[0].score", None),
        (
            lambda lines: scale(lines, 1.01),
            "differs in proponents[0].score",
            "has scores that differ by 0.0",
        ),
        (lose_first, "names other proponents", "names other proponents"),
        (exchange, "names other proponents", "has scores that differ by "),
        (other_text, "differs in proponents[0].text", "differs in proponents[0].text"),
        (uncertify, "differs in certificate.certified", "differs in certificate.certified"),
        (other_share, "differs in explanation.hits[0].layers[0]", None),
        (
            answered,
            "was refused (the weather is bad); asked again, it is refused",
            "was refused (the weather is bad); asked again, it is refused",
        ),
    ],
)
def test_other_answers_are_named(
    asked_again: None,
    index: wf.Index,
    sound: tuple[Entry, ...],
    change: Callable[[list[dict]], Any],
    exactly: str,
    within: str | None,
) -> None:
    entries = [forged(sound, change)[2 if change is answered else 0]]
    (problem,) = recompute(index, entries).problems
    assert problem.detail.startswith(exactly)
    tolerated = recompute(index, entries, tolerance=1e-6)
    assert tolerated.identical == 0
    details = [problem.detail for problem in tolerated.problems]
    assert len(details) == (within is not None)
    assert all(detail.startswith(within or "") for detail in details)
