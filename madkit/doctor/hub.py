"""Whether the Hugging Face hub can be asked. Nobody needs it who has the weights: out of reach is a warning."""

from __future__ import annotations

from madkit.core.hub import SWITCHED_OFF, behind_proxy, why_unreachable
from madkit.doctor.findings import Finding, passed, warned

GROUP = "hub"
TIMEOUT_S = 3.0
MEND = "give weights as files: --weights PATH, --init FOLDER"


def check_hub(timeout_s: float = TIMEOUT_S) -> list[Finding]:
    """One connection, three seconds at most; nothing is sent."""
    from huggingface_hub import constants, get_token

    token = "a token" if get_token() else "no token (needed for madkit export --push)"
    if constants.HF_HUB_OFFLINE:
        return [warned(GROUP, "access", SWITCHED_OFF, f"unset HF_HUB_OFFLINE; or {MEND}")]
    reason = why_unreachable(constants.ENDPOINT, timeout_s)
    if reason is not None:
        return [warned(GROUP, "access", reason, MEND)]
    how = "behind a proxy, not tried" if behind_proxy() else "it answers"
    return [passed(GROUP, "access", f"{how}, {token}")]
