"""The public paths that pages know: of the script in its forms, and of the endpoint beside it. Names are the site's own."""

from dataclasses import dataclass

SENDX_PREFIX = "/prod"  # where SendX's install snippet looks for the script


@dataclass(frozen=True)
class Paths:
    """`prefix`: without a slash at its end; `script`: a file name that ends in .js; `endpoint`: a file name that does not."""

    prefix: str
    script: str
    endpoint: str

    @property
    def push(self) -> str:
        return f"{self.prefix}/{self.endpoint}"

    @property
    def sendx_push(self) -> str:
        """Returns the path of the endpoint beside the script of SendX's install snippet."""
        return f"{SENDX_PREFIX}/{self.endpoint}"

    @property
    def script_path(self) -> str:
        return f"{self.prefix}/{self.script}"

    @property
    def debug_path(self) -> str:
        return self.hashed_path("debug")

    def hashed_path(self, digest: str) -> str:
        return f"{self.prefix}/{self.script.removesuffix('.js')}.{digest}.js"
