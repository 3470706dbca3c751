"""Shows what publishing a folder would change on the Hub, and pushes it in one commit after a yes."""

import difflib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hub.errors import hub_errors
from ..hub.model_index import PICKLES
from .cards import card_faults, token_like

__all__ = ["Changes", "ask_on_terminal", "check_stage", "compare", "publish"]

_LONGEST_DIFF = 200  # lines
_BLOCK = 1 << 22  # bytes of a file that are looked through at a time


@dataclass(frozen=True)
class Changes:
    """What a push would do.

    Attributes:
        new: files that are not on the Hub yet.
        changed: files with another content there.
        only_there: files that are on the Hub alone; they stay.
        card: unified diff of the card, empty if the card is the same.
        head: commit on the Hub that was compared with; `None` for a repository that is not there yet.
        is_gated: whether readers must have agreed to conditions there.
    """

    new: list[str]
    changed: list[str]
    only_there: list[str]
    card: str
    head: str | None
    is_gated: bool = False

    def lines(self) -> list[str]:
        """Return the lines of text that show the changes on a terminal."""
        listed = [f"  {sign} {name}" for sign, names in (("+", self.new), ("~", self.changed)) for name in names]
        listed += [f"  = {name} (only on the Hub, stays)" for name in self.only_there]
        diff = self.card.splitlines()
        cut = [f"... {len(diff) - _LONGEST_DIFF} more lines"] if len(diff) > _LONGEST_DIFF else []
        return [*listed, *diff[:_LONGEST_DIFF], *cut]


def publish(
    stage: Path,
    repo_id: str,
    kind: str,
    *,
    message: str,
    private: bool | None = None,
    is_sure: Callable[[str], bool],
    report: Callable[[str], None] = print,
    space_sdk: str | None = None,
    gated: bool = False,
    look_only: bool = False,
) -> str | None:
    """Check a folder, show what would change, ask, push in one commit.

    The token is that of `HF_TOKEN` or of `hf auth login`; it is never an argument.

    Args:
        stage: folder of all that the repository shall hold, with `README.md`.
        repo_id: name of the repository, "name/of-repository".
        kind: kind of the repository, "model", "dataset" or "space".
        message: message of the commit.
        private: whether a new repository is private; `None` for the owner's default.
        is_sure: function asked with a question before anything is changed.
        report: function called with lines of text.
        space_sdk: SDK of a new Space.
        gated: whether to let in only readers who have agreed to the conditions of the card; set before anything is
            uploaded.
        look_only: whether to push nothing, whatever `is_sure` says; a Hub that cannot be reached is no error then.

    Returns:
        Address of the commit; `None` if there was nothing to change, or the answer was no.

    Raises:
        ValueError: the folder is not fit to be published.
        OSError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    check_stage(stage, kind)
    api = HfApi()
    try:
        with hub_errors(repo_id):
            changes = compare(api, stage, repo_id, kind)
    except ConnectionError as error:
        if not look_only:
            raise
        report(f"What is there could not be compared, so that all is shown as new: {error}")
        changes, title = _all_new(_files(stage)), f"{repo_id}:"
    else:
        title = f"{repo_id} on {api.endpoint}{'' if changes.head else ', a new repository'}:"
    to_gate = gated and not changes.is_gated
    if not changes.new and not changes.changed and not to_gate:
        report(f"{repo_id} is up to date.")
        return None
    report(title)
    for line in [*changes.lines(), *(["  gated: only readers who agree to its conditions"] if to_gate else [])]:
        report(line)
    if look_only or not is_sure(f"Push to {repo_id}?"):
        report("Nothing was pushed.")
        return None
    with hub_errors(repo_id):
        if changes.head is None:
            api.create_repo(repo_id, repo_type=kind, private=private, space_sdk=space_sdk, exist_ok=True)
        if to_gate:
            api.update_repo_settings(repo_id=repo_id, repo_type=kind, gated="auto")
            report(f"{repo_id} is gated.")
        if not changes.new and not changes.changed:
            return None
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=stage,
            repo_type=kind,
            commit_message=message,
            parent_commit=changes.head,  # what was shown is what is changed, or nothing is
        )
    return str(commit.commit_url)


def check_stage(stage: Path, kind: str) -> None:
    """Refuse what must not be published.

    Raises:
        ValueError: naming all that is wrong.
    """
    faults = []
    card = stage / "README.md"
    if card.is_file():
        faults += [f"README.md: {fault}" for fault in card_faults(card.read_text(encoding="utf-8"), kind, stage)]
    else:
        faults.append("README.md is missing")
    token = os.environ.get("HF_TOKEN") or _login_token()
    for path in sorted(path for path in stage.rglob("*") if path.is_file()):
        name = path.relative_to(stage).as_posix()
        if path.suffix in PICKLES and kind != "dataset":
            faults.append(f"{name} would have to be unpickled; only safetensors are published")
        if _holds_token(path, token):
            faults.append(f"{name} holds what looks like a token of the Hub")
    if faults:
        raise ValueError("this cannot be published: " + "; ".join(faults) + ".")


def _holds_token(path: Path, token: str | None) -> bool:
    """Whether any file, be it text or not, has something in it like a token, or the one in use."""
    end = b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            content = end + block
            if token_like(content) or (token and token.encode() in content):
                return True
            end = content[-1024:]  # a token may begin in one block and end in the next
    return False


def compare(api: Any, stage: Path, repo_id: str, kind: str) -> Changes:
    """Compare a folder with a repository, to see what a push would change."""
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    here = _files(stage)
    try:
        info = api.repo_info(repo_id, repo_type=kind)
    except RepositoryNotFoundError:
        return _all_new(here)
    head = info.sha
    verification = api.verify_repo_checksums(repo_id, repo_type=kind, revision=head, local_dir=stage)
    changed, new = sorted(mismatch["path"] for mismatch in verification.mismatches), sorted(verification.extra_paths)
    card = ""
    if "README.md" in changed:
        try:
            old = Path(api.hf_hub_download(repo_id, "README.md", repo_type=kind, revision=head)).read_text("utf-8")
        except EntryNotFoundError:
            old = ""
        card = _card_diff(old, here)
    elif "README.md" in new:
        card = _card_diff("", here)
    only_there = sorted(set(verification.missing_paths) - {".gitattributes"})
    return Changes(new, changed, only_there, card, head, bool(getattr(info, "gated", False)))


def _files(stage: Path) -> dict[str, Path]:
    return {path.relative_to(stage).as_posix(): path for path in sorted(stage.rglob("*")) if path.is_file()}


def _all_new(here: dict[str, Path]) -> Changes:
    return Changes(list(here), [], [], _card_diff("", here), None)


def _card_diff(old: str, here: dict[str, Path]) -> str:
    new = here["README.md"].read_text("utf-8")
    names = ("README.md on the Hub", "README.md")
    return "\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), *names, n=2, lineterm=""))


def _login_token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def ask_on_terminal(question: str) -> bool:
    """Ask, with no as the default.

    Raises:
        ValueError: nobody is there to answer.
    """
    if not sys.stdin.isatty():
        raise ValueError(f"{question} Nobody can be asked here: say so by --yes, or look only by --dry-run.")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
