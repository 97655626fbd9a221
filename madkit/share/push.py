"""An exported folder on the Hugging Face hub. Without a token or a network: one sentence, at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.errors import RunError
from madkit.core.hub import SWITCHED_OFF, why_unreachable
from madkit.evaluate.origin import RUN_MANIFEST
from madkit.share.folder import CARD, files_of
from madkit.share.names import check_repository

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN_HINT = "hf auth login, or set HF_TOKEN; the folder is written and can be pushed later"
LATER_HINT = "the folder is written; push it later with the same command"
_DENIED = {
    401: ("does not know this token", TOKEN_HINT),
    403: ("does not let this token write there", "use a token with write access to that account or organisation"),
}


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of a push: the page, the commit or pull request, and whether others can see it."""

    repository: str
    url: str
    commit: str
    private: bool


def check_push() -> None:
    """Raise RunError, with the reason, where nothing can be pushed from here. At most a few seconds."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise RunError(f"Nothing can be pushed: {SWITCHED_OFF}.", hint="unset HF_HUB_OFFLINE; " + LATER_HINT)
    if get_token() is None:
        raise RunError("Nothing can be pushed: there is no token for the hub on this machine.", hint=TOKEN_HINT)
    reason = why_unreachable(constants.ENDPOINT)
    if reason is not None:
        raise RunError(f"Nothing can be pushed: {reason}.", hint=LATER_HINT)


def push_folder(
    folder: Path,
    repository: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
) -> Pushed:
    """Upload the files of an exported folder, and no others that lie beside them.

    Args:
        folder: what `export_run` wrote.
        repository: `ORG/NAME`; made where it does not exist.
        private: whether a repository that is made is private. One that exists stays as visible as it is.
        revision: the branch to write to, made where it does not exist; None: the main branch.
        create_pr: open a pull request instead of writing to the branch.

    Raises:
        UsageProblem: no such name, or the folder is no export.
        RunError: switched off, no token, no network, or the hub refuses; each in one sentence.
    """
    check_repository(repository)
    files = files_of(folder)
    check_push()
    from huggingface_hub import HfApi

    api = HfApi(library_name="madkit")
    _ask(repository, lambda: api.create_repo(repository, private=private, exist_ok=True))
    if revision is not None:
        _ask(repository, lambda: api.create_branch(repository, branch=revision, exist_ok=True))
    done: Any = _ask(
        repository,
        lambda: api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[CARD, RUN_MANIFEST, *files],
            commit_message=f"Student exported by madkit from {folder.name}",
            revision=revision,
            create_pr=create_pr,
        ),
    )
    about: Any = _ask(repository, lambda: api.model_info(repository))
    url = str(getattr(done, "pr_url", None) or getattr(done, "commit_url", "") or "")
    return Pushed(repository, url, str(getattr(done, "oid", "")), bool(getattr(about, "private", private)))


def _ask(repository: str, call: Callable[[], Any]) -> Any:
    """Ask the hub. Its client raises several unrelated families of exceptions; all of them end as one sentence."""
    try:
        return call()
    except Exception as error:
        reason, hint = _why(error)
    raise RunError(f"{repository} could not be pushed: {reason}.", hint=hint)


def _why(error: BaseException) -> tuple[str, str]:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _DENIED:
        said, hint = _DENIED[status]
        return f"the hub {said}", hint
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    said = f"{type(error).__name__}: {line.rstrip('.')}"
    if error.__cause__ is None:
        return said, LATER_HINT
    reason, hint = _why(error.__cause__)  # the client says which file, and its cause what happened to it
    return f"{said} ({reason})", hint
