"""The one rule of which run may resume which: a run's identity, plain values by name, compared one by one.

Each stage states the identity of its run. StampIdentity writes it into every checkpoint, and `resume_point` refuses another
run's. An entry that is None, {} or [] counts as missing, so a stage can get a new entry whose default is None.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dada_det.engine.runtime.checkpoint import check_checkpoint, newest_that_loads
from dada_det.errors import UserError
from dada_det.files import read_json, write_json

Identity = dict[str, Any]
MARKER = "run.json"  # the identity of the run that has made a folder, and may remove it
MOST_NAMED = 6  # entries that a refusal names
LONGEST = 60  # characters of a value in it


def plain(value: Any) -> Any:
    """`value` as dicts, lists, numbers, texts, booleans and None, which JSON and a weights-only pickle keep."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


def demand_same(path: Path, found: Any, wanted: Identity) -> None:
    """Raises UserError unless `found`, read from `path`, is the identity `wanted`; the sentence says what differs."""
    if not isinstance(found, dict):
        raise UserError(f"{path} does not say of which run it is, so it cannot go on as this one; give one that this stage "
                        "wrote, or another --work-dir")
    theirs, ours = _leaves(found), _leaves(wanted)
    differing = [name for name in dict.fromkeys([*ours, *theirs]) if theirs.get(name) != ours.get(name)]
    if differing:
        said = [f"{name} {_short(theirs.get(name))} instead of {_short(ours.get(name))}" for name in differing[:MOST_NAMED]]
        more = f", and {len(differing) - MOST_NAMED} entries more" if len(differing) > MOST_NAMED else ""
        raise UserError(f"{path} is of another run ({', '.join(said)}{more}); resume with the settings of that run, or give "
                        "another --work-dir")


def resume_point(work_dir: str | Path, identity: Identity, stage: str, checkpoint: str | None = None) -> Path | None:
    """The checkpoint that --resume continues: `checkpoint`, else the newest in `work_dir`.

    Returns:
        None, after one printed line, if there is none yet.

    Raises:
        UserError: it is of another run.
    """
    found = (Path(checkpoint), check_checkpoint(checkpoint)) if checkpoint else newest_that_loads(work_dir, stage)
    if found is None:
        return None
    demand_same(found[0], (found[1].get("meta") or {}).get("identity"), identity)
    return found[0]


def demand_own(folder: Path) -> None:
    """Raises UserError if `folder` holds files but no marker, so that no run has made it; a marker that a kill has left half
    written does not count."""
    empty = folder.is_dir() and all(path.name.startswith(f".{MARKER}.") for path in folder.iterdir())
    if folder.is_symlink() or (folder.exists() and not empty and not (folder / MARKER).is_file()):
        raise UserError(f"{folder} was not made by a run, which would write there; move it away, or give another --work-dir")


def own_folder(folder: Path, identity: Identity, keep: bool, written: str | None = None) -> None:
    """Makes `folder` this run's own. Removes what an earlier run has left, unless `keep` and it was this same run.

    Args:
        written: a pattern of the files that runs leave there; None: everything in it.

    Raises:
        UserError: as demand_own does, before anything is removed.
    """
    demand_own(folder)
    marker = folder / MARKER
    same = keep and marker.is_file() and _leaves(read_json(marker, "run's marker")) == _leaves(plain(identity))
    if same:
        return
    if folder.exists() and written is None:  # renamed first: a kill would leave files without their marker
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        shutil.rmtree(old)
    for path in folder.glob(written) if written else ():
        path.unlink(missing_ok=True)  # several processes may do this
    write_json(marker, plain(identity))


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """The values inside `value` by their dotted names, without those that count as not there."""
    if value in ({}, []):
        return {}
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value)):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        inner = (_leaves(entry, f"{name}.{key}" if name else str(key)) for key, entry in entries)
        return {place: leaf for leaves in inner for place, leaf in leaves.items()}
    return {} if value is None else {name: value}


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}.."
