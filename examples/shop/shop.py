"""A small tea shop that identifies its customers on log-in: what a site's own back end does beside the proxy.

It signs identity tokens with the key it shares with the proxy and serves them from `/scq-token`; its pages push
to `_scq`. It imports nothing from the proxy, knows no SendX key and never calls SendX. It is an example, not a
shop: there are no passwords, no payments and no database, the session cookie holds everything.
"""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs

import jwt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

HERE = Path(__file__).parent
NO_STORE = {"Cache-Control": "no-store"}
TOKEN_LIFETIME = timedelta(minutes=10)
MAX_FORM_BYTES = 4096
MAX_OF_ONE_PRODUCT = 99
EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,189}")


@dataclass(frozen=True)
class Product:
    """One thing on the shelf; `price` is in whole euros, `slug` names its picture and its button's id."""

    slug: str
    name: str
    price: int
    blurb: str


PRODUCTS = {
    product.slug: product
    for product in (
        Product("teapot", "Teapot", 48, "Stoneware, one litre. Pours without a drip."),
        Product("sencha", "Sencha", 16, "First harvest from Uji, 100 g in a tin."),
        Product("cups", "Pair of cups", 29, "Thrown by hand, so no two are quite alike."),
    )
}


def create_shop(*, identity_key: str, script_url: str = "/scq/scq.js", sandbox_url: str | None = None) -> Starlette:
    """Build the shop.

    `identity_key` is a secret of at least 32 characters that the proxy knows too (`SCQ_IDENTITY_KEYS`).
    `script_url` is where the proxy serves its script; with `sandbox_url`, pages link to the fake SendX there.
    Sessions end with the process: their secret is drawn at every start.
    """
    return _Shop(identity_key, script_url, sandbox_url).application()


def identity_token(session: dict[str, object], key: str, now: datetime) -> str:
    """Sign who the session belongs to, for the proxy: `email` and, in `contact`, what the shop vouches for.

    The browser can read and repeat the token, but not alter it. That is why the tag "paid user" is given here
    and not by the page.
    """
    claims: dict[str, object] = {
        "aud": "scq",
        "email": session["email"],
        "iat": now,
        "exp": now + TOKEN_LIFETIME,
    }
    if session.get("paid"):
        claims["contact"] = {"tags": ["paid user"]}
    return jwt.encode(claims, key, algorithm="HS256")


class _Shop:
    """The request handlers and what they share."""

    def __init__(self, identity_key: str, script_url: str, sandbox_url: str | None) -> None:
        self._identity_key = identity_key
        self._templates = Jinja2Templates(directory=HERE / "templates")
        self._templates.env.globals.update(script_url=script_url, sandbox_url=sandbox_url)

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self.home, name="home"),
                Route("/login", self.login_page),
                Route("/login", self.log_in, methods=["POST"]),
                Route("/logout", self.log_out, methods=["POST"]),
                Route("/cart", self.cart_page),
                Route("/cart", self.change_cart, methods=["POST"]),
                Route("/account", self.account_page),
                Route("/upgrade", self.upgrade, methods=["POST"]),
                Route("/scq-token", self.scq_token),
                Mount("/static", StaticFiles(directory=HERE / "static")),
            ],
            # Lax: no other site's form can post with this cookie. On a real site add https_only=True.
            middleware=[
                Middleware(
                    SessionMiddleware,
                    secret_key=secrets.token_urlsafe(32),
                    session_cookie="shop_session",
                    same_site="lax",
                )
            ],
            exception_handlers={404: self.not_found},
        )

    async def home(self, request: Request) -> Response:
        return self._page(request, "home.html", products=list(PRODUCTS.values()))

    async def login_page(self, request: Request) -> Response:
        if "email" in request.session:
            return RedirectResponse("/account", 303)
        return self._page(request, "login.html", email="ada@example.com")

    async def log_in(self, request: Request) -> Response:
        email = (await _form(request)).get("email", "").strip()
        if not EMAIL.fullmatch(email):
            wrong = "That does not look like an e-mail address. Try ada@example.com."
            return self._page(request, "login.html", 422, email=email, wrong=wrong)
        if request.session.get("email", email) != email:
            request.session.clear()  # somebody else: their cart is not this person's
        request.session["email"] = email
        return RedirectResponse("/", 303)

    async def log_out(self, request: Request) -> Response:
        request.session.clear()
        return _done(request, "/")

    async def cart_page(self, request: Request) -> Response:
        cart: dict[str, int] = request.session.get("cart", {})
        lines = [(PRODUCTS[slug], count) for slug, count in cart.items()]
        total = sum(product.price * count for product, count in lines)
        return self._page(request, "cart.html", lines=lines, total=total)

    async def change_cart(self, request: Request) -> Response:
        form = await _form(request)
        slug = form.get("product", "")
        if slug not in PRODUCTS:
            return JSONResponse({"error": "no such product"}, 404)
        cart: dict[str, int] = dict(request.session.get("cart", {}))
        if form.get("change") == "remove":
            cart.pop(slug, None)
        else:
            cart[slug] = min(cart.get(slug, 0) + 1, MAX_OF_ONE_PRODUCT)
        request.session["cart"] = cart
        return _done(request, "/cart", cart=sum(cart.values()))

    async def account_page(self, request: Request) -> Response:
        if "email" not in request.session:
            return RedirectResponse("/login", 303)
        return self._page(request, "account.html")

    async def upgrade(self, request: Request) -> Response:
        """Where a real shop would take the payment; from here on its tokens vouch for "paid user"."""
        if "email" not in request.session:
            return _logged_out() if _from_script(request) else RedirectResponse("/login", 303)
        request.session["paid"] = True
        return _done(request, "/account", paid=True)

    async def scq_token(self, request: Request) -> Response:
        """Serve a token for whoever is logged in. Never cached: a cached token makes everyone that person."""
        if "email" not in request.session:
            return _logged_out()
        token = identity_token(request.session, self._identity_key, datetime.now(UTC))
        return JSONResponse({"token": token}, headers=NO_STORE)

    async def not_found(self, request: Request, _: Exception) -> Response:
        return self._page(request, "not_found.html", 404)

    def _page(self, request: Request, template: str, status: int = 200, **context: object) -> Response:
        context |= {
            "member": request.session.get("email"),
            "paid": request.session.get("paid", False),
            "in_cart": sum(request.session.get("cart", {}).values()),
        }
        return self._templates.TemplateResponse(request, template, context, status_code=status, headers=NO_STORE)


def _done(request: Request, where: str, **facts: object) -> Response:
    """Answer a change: facts for the page's script, a redirect for a form sent without one."""
    if _from_script(request):
        return JSONResponse(facts, headers=NO_STORE)
    return RedirectResponse(where, 303)


def _logged_out() -> Response:
    return JSONResponse({"error": "nobody is logged in"}, 401, headers=NO_STORE)


def _from_script(request: Request) -> bool:
    return request.headers.get("accept") == "application/json"


async def _form(request: Request) -> dict[str, str]:
    """Read a small urlencoded form; of a field that occurs twice the last value counts."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise HTTPException(413, "The form is too large.")
    try:
        fields = parse_qs(body.decode(), max_num_fields=20)
    except ValueError:
        raise HTTPException(400, "The form is not readable.") from None
    return {name: values[-1] for name, values in fields.items()}
