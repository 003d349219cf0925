"""Any JSON at all, with a leaning towards what the wire knows."""

from __future__ import annotations

from hypothesis import strategies as st

texts = st.text(max_size=12) | st.sampled_from(["track", "identify", "reset", "consent", "granted", "cart-1", "a@b.co"])
keys = texts | st.sampled_from(
    ["v", "s", "pushes", "id", "call", "addTags", "removeTags", "email", "token", "tags", "customFields", "firstName"]
)
numbers = st.integers() | st.floats() | st.integers(-(10**400), 10**400)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=12,
)
