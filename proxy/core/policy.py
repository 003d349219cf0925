"""The operator's lists of tags and fields against what a browser asks for.

Pure. A track with a tag that is not offered is refused whole, because half a track can start the wrong automation; an identify
loses what is not offered and goes on. A wildcard stands only for what a person can see: control characters, line and paragraph separators and
direction marks pass only where the operator has spelled them out. It does not judge what the site's own servers vouch for (a token's
`contact`, a server key).
"""

import fnmatch
import re
from collections.abc import Callable, Sequence

import msgspec

from proxy.core.calls import Attributes, Track
from proxy.core.emails import holds_address
from proxy.core.reasons import Reason
from proxy.core.visitors import Trust

_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Refusal(msgspec.Struct, frozen=True):
    """The refusal of a push. `tag`: the one that was not offered and could be, for the operator (`scq-proxy status`); never an address."""

    reason: Reason
    where: str | None = None
    tag: str | None = None


class Policy:
    """The lists of SCQ_TAGS, SCQ_FIELDS and their SCQ_ASSERTED_ twins: case-sensitive globs."""

    def __init__(
        self,
        *,
        tags: Sequence[str],
        fields: Sequence[str],
        asserted_tags: Sequence[str],
        asserted_fields: Sequence[str],
        asserted_identify: bool,
    ) -> None:
        self._tags = {Trust.VERIFIED: _matcher(tags), Trust.ASSERTED: _matcher(asserted_tags)}
        self._fields = {Trust.VERIFIED: _matcher(fields), Trust.ASSERTED: _matcher(asserted_fields)}
        # A held push is judged again once it is known who pushed it; what nobody could get is refused at once.
        self._tags[Trust.ANONYMOUS] = _matcher([*tags, *asserted_tags] if asserted_identify else tags)
        self.asserted_identify = asserted_identify

    def judge_track(self, track: Track, trust: Trust) -> Refusal | None:
        """Returns the refusal of the first tag that is not offered to a visitor of this trust, None if all are."""
        if track.remove_tags and trust is Trust.ASSERTED:
            return Refusal(Reason.TAG_NOT_ALLOWED, "call[1].removeTags[0]")
        offered = self._tags[trust]
        for key, tags in (("addTags", track.add_tags), ("removeTags", track.remove_tags)):
            for index, tag in enumerate(tags):
                if not offered(tag):
                    shown = None if holds_address(tag) else tag
                    return Refusal(Reason.TAG_NOT_ALLOWED, f"call[1].{key}[{index}]", shown)
        return None

    def trim_identify(self, attributes: Attributes, trust: Trust) -> tuple[Attributes, tuple[str, ...]]:
        """Returns the attributes that are offered, and the names of the others as the answer gives them.

        `newEmail` never comes from a browser, whatever its trust.
        """
        field_offered, tag_offered = self._fields[trust], self._tags[trust]
        fields = {name: value for name, value in attributes.fields.items() if field_offered(name)}
        custom = {name: value for name, value in attributes.custom_fields.items() if field_offered(name)}
        tags = tuple(tag for tag in attributes.tags if tag_offered(tag))
        dropped = [name for name in attributes.fields if name not in fields]
        dropped += [f"customFields.{name}" for name in attributes.custom_fields if name not in custom]
        dropped += [f"tags.{tag}" for tag in attributes.tags if tag not in tags]
        if attributes.new_email is not None:
            dropped.append("newEmail")
        return Attributes(fields, custom, tags), tuple(dropped)

    def tag_setting(self, trust: Trust) -> str:
        """Returns the setting that offers tags to visitors of this trust."""
        return "SCQ_ASSERTED_TAGS" if trust is Trust.ASSERTED else "SCQ_TAGS"

    def settings_for(self, dropped: Sequence[str], trust: Trust) -> list[tuple[str, str]]:
        """Returns the names dropped by `trim_identify` that a setting could offer, each with that setting; none that holds an address."""
        fields = "SCQ_ASSERTED_FIELDS" if trust is Trust.ASSERTED else "SCQ_FIELDS"
        settings = [
            (name.removeprefix("tags."), self.tag_setting(trust))
            if name.startswith("tags.")
            else (name.removeprefix("customFields."), fields)
            for name in dropped
            if name != "newEmail"
        ]
        return [(name, setting) for name, setting in settings if not holds_address(name)]


def vouch(offered: Attributes, vouched: Attributes) -> Attributes:
    """Returns what the page may set, overridden by what the site's back end says."""
    return Attributes(
        offered.fields | vouched.fields,
        offered.custom_fields | vouched.custom_fields,
        tuple(dict.fromkeys(offered.tags + vouched.tags)),
        vouched.new_email,
    )


def _matcher(globs: Sequence[str]) -> Callable[[str], bool]:
    if not globs:
        return lambda _: False
    pattern = re.compile("|".join(fnmatch.translate(glob) for glob in globs))
    return lambda name: pattern.match(name) is not None and (name.isprintable() or _is_spelled_out(name, globs))


def _is_spelled_out(name: str, globs: Sequence[str]) -> bool:
    """Returns whether one of the globs has each unseen character of the name itself, so that no wildcard stands for one."""
    unseen = _UNSEEN.findall(name)
    if not unseen:
        return True
    return any(_UNSEEN.findall(glob) == unseen and fnmatch.fnmatchcase(name, glob) for glob in globs if "[" not in glob)
