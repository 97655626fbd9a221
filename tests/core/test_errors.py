"""Exit codes are an interface that stays fixed."""

from __future__ import annotations

import pickle

from madkit.core import errors


def test_exit_codes() -> None:
    codes = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.MadkitError)
    }
    assert codes == {
        "MadkitError": 1,
        "CacheInUse": 1,
        "UsageProblem": 2,
        "NotFoundError": 1,
        "DataError": 1,
        "CacheError": 1,
        "ConfigError": 1,
        "RunError": 1,
        "VerificationFailed": 3,
        "StoppedResumable": 75,
    }


def test_errors_travel_between_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(errors.DataError("a.json is broken.", hint="mend it.")))
    assert type(error) is errors.DataError
    assert (str(error), error.message, error.hint) == ("a.json is broken.", "a.json is broken.", "mend it.")
