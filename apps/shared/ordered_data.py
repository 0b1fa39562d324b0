"""Numbers the data of Streamlit's components (v2), so that a script can leave out data that are older than it has.

Streamlit 1.67 imports a component's script anew for each change of its data, and Chromium ends imports of a script that
is still being loaded in any order (ModuleMap::Entry has a hash set of those that wait). So on a busy machine a page
could stay at "queued" although the answer's end was drawn. A script begins with

    if (data.number < (parentElement.dataNumber ?? 0)) return;
    parentElement.dataNumber = data.number;
"""

import json
import time
from typing import Any

import streamlit as st


def ordered(key: str, data: dict[str, Any]) -> dict[str, Any]:
    """The data of the component with this key, and the `number` of their last change, which grows.

    It is a time, in microseconds: a page that connects again, to a restarted app, has numbers of the session before.
    """
    changes: dict[str, tuple[int, int]] = st.session_state.setdefault("component_changes", {})
    fingerprint = hash(json.dumps(data))
    last, number = changes.get(key, (None, 0))
    if last != fingerprint:
        number = max(number + 1, time.time_ns() // 1000)
        changes[key] = (fingerprint, number)
    return data | {"number": number}
