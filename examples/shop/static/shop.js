/*
 * Everything the shop's pages do with the proxy, in one file. The parts to copy into a site of your own are
 * identify(), and the one-line pushes in the handlers below it; the rest draws the panel "What just happened".
 */
"use strict";

/* ---- Pushing, and showing what came of it --------------------------------------------------------------- */

const MEANING = {
  accepted: "Stored safely; on its way to SendX.",
  held: "Kept until the proxy knows who you are, then forwarded in order.",
  "held after a log-out": "Kept until you log in; if somebody else logs in here, it is dropped.",
  duplicate: "The proxy had it already.",
  unanswered: "The proxy cannot be reached; its script goes on trying.",
  left: "The page was left before the answer came; the proxy’s script sees to it.",
  lost: "The page was left before the proxy’s script had loaded.",
  "tag-not-allowed": "The site’s settings do not let a browser give this tag.",
  "unverified-identity": "The proxy wants a signed token for this.",
  "identity-changed": "Made by somebody who has left this browser since.",
};

/** Push a call and show it. The promise returned is fulfilled with `true` or `false`: what came of it. */
function push(method, fields = {}, shown = fields) {
  const entry = addToLog(method, Object.keys(shown).length ? [method, shown] : [method]);
  return new Promise((resolve) => {
    window._scq.push([method, {
      ...fields,
      success(result) {
        finish(entry, result.status, (result.dropped || []).join(", "));
        resolve(true);
      },
      failure(reason) {
        finish(entry, reason === "timeout" ? "unanswered" : "refused", reason);
        resolve(false);
      },
    }]);
  });
}

/** Until the proxy's script has loaded, `_scq` is a plain array that only collects. */
function scriptHasLoaded() {
  return window._scq.push !== Array.prototype.push;
}

/* ---- What the shop pushes -------------------------------------------------------------------------------- */

/** Tell the proxy who is logged in. The token comes from the shop's back end and is never part of a cached page. */
async function identify() {
  const answer = await fetch("/scq-token", { cache: "no-store" });
  if (!answer.ok) return;
  const { token } = await answer.json();
  push("identify", { token }, { token: "…" });
}

/** A changed account shows in the next token, so identify again. */
async function upgrade() {
  push("track", { addTags: ["clicked upgrade"] });
  await post("/upgrade");
  showAsPaid();
  await identify().catch(() => {}); // the next page identifies again
}

async function addToCart(form, name) {
  push("track", { addTags: [`cart: ${name}`] });
  const { cart } = await post("/cart", new URLSearchParams(new FormData(form)));
  document.getElementById("cart-count").textContent = cart;
}

/** Nobody has to wait for the answer to a reset: the script delivers it. Here we do, briefly, to show it. */
async function logOut() {
  const answered = push("reset");
  await post("/logout");
  if (scriptHasLoaded()) await Promise.race([answered, new Promise((resolve) => setTimeout(resolve, 1000))]);
  location.assign("/");
}

/** A typed address proves nothing, so the proxy gives it less trust than a token. */
async function signUp(form) {
  const email = document.getElementById("newsletter-email").value.trim();
  const firstName = document.getElementById("newsletter-name").value.trim();
  const result = document.getElementById("newsletter-result");
  result.textContent = scriptHasLoaded() ? "One moment…" : "Waiting for the proxy’s script…";
  const accepted = await push("identify", { email, ...(firstName && { firstName }), tags: ["newsletter"] });
  result.textContent = accepted ? "Thank you, you are on the list." : "That did not work. Please try again later.";
  if (accepted) form.reset();
}

/* ---- The page -------------------------------------------------------------------------------------------- */

async function post(url, body) {
  const answer = await fetch(url, { method: "POST", body, headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(`${url} answered ${answer.status}`);
  return answer.json();
}

/** Let `work` handle the form. If the shop itself cannot be reached that way, send the form as if there were no script. */
function onSubmit(form, work) {
  form?.addEventListener("submit", (event) => {
    event.preventDefault();
    work(form).catch(() => form.submit());
  });
}

function showAsPaid() {
  document.getElementById("upgrade-form").hidden = true;
  document.getElementById("not-paid").hidden = true;
  document.getElementById("paid").hidden = false;
}

for (const form of document.querySelectorAll(".cart-form")) {
  onSubmit(form, () => addToCart(form, form.querySelector(".add-to-cart").dataset.name));
}
onSubmit(document.getElementById("upgrade-form"), upgrade);
onSubmit(document.getElementById("logout-form"), logOut);
onSubmit(document.getElementById("newsletter-form"), signUp);

document.getElementById("steal").addEventListener("click", () => push("track", { addTags: ["paid user"] }));
document.getElementById("clear-log").addEventListener("click", clearLog);

// The script tag is async, and load waits for it: if the queue is still a plain array by then, it did not come.
window.addEventListener("load", () => {
  document.getElementById("blocked").hidden = scriptHasLoaded();
});

// A page kept for back and forward may show the person who has logged out since: ask the shop again.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

window.addEventListener("pagehide", () => {
  for (const entry of log) {
    if (entry.status === "waiting") finish(entry, scriptHasLoaded() ? "left" : "lost", "");
  }
});

/* ---- The panel: a list that survives the change of page, in this tab only -------------------------------- */

const KEPT = 20;
const log = kept("shop-log", []);
let loggedOut = kept("shop-logged-out", false); // and nobody has been identified since

function kept(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise; // storage may be forbidden; then the panel's memory ends with the page
  }
}

function keep(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
  } catch { /* as above */ }
}

function addToLog(method, call) {
  const entry = { method, call: spaced(call), status: "waiting", detail: "" };
  log.unshift(entry);
  log.length = Math.min(log.length, KEPT);
  showLog();
  showLatest(entry);
  return entry;
}

function finish(entry, status, detail) {
  noteWhoIsHere(entry.method, status);
  Object.assign(entry, { status, detail, loggedOut });
  showLog();
  showLatest(entry);
}

/** What is held after a log-out waits for the person who left, and for nobody else. */
function noteWhoIsHere(method, status) {
  if (method === "reset" && !["refused", "lost"].includes(status)) loggedOut = true;
  if (method === "identify" && ["accepted", "duplicate"].includes(status)) loggedOut = false;
  keep("shop-logged-out", loggedOut);
}

function clearLog() {
  log.length = 0;
  showLog();
  showLatest();
}

function showLog() {
  keep("shop-log", log);
  document.getElementById("log").replaceChildren(...log.map(item));
  document.getElementById("log-empty").hidden = log.length > 0;
}

function item(entry) {
  const li = document.createElement("li");
  li.dataset.status = entry.status;
  li.append(element("code", entry.call), element("span", outcome(entry), "outcome"));
  li.append(element("span", meaning(entry), "meaning"));
  return li;
}

/** One line for whoever does not see the panel. */
function showLatest(entry) {
  const line = document.getElementById("log-said");
  line.replaceChildren();
  delete line.parentElement.dataset.status;
  if (!entry) return;
  line.parentElement.dataset.status = entry.status;
  line.append(element("code", entry.method), " ", element("span", outcome(entry), "outcome"), " ");
  line.append(element("span", meaning(entry), "meaning"));
}

/** JSON on one line with spaces, where it may wrap. A line feed inside a string is escaped, so none is touched. */
function spaced(call) {
  const lines = JSON.stringify(call, null, 1);
  return lines.replace(/([[{])\n */g, "$1").replace(/\n *([\]}])/g, "$1").replace(/\n */g, " ");
}

function meaning({ method, status, detail, loggedOut }) {
  if (method === "reset" && status === "accepted") return "This browser is nobody’s again.";
  if (status === "held" && loggedOut) return MEANING["held after a log-out"];
  return MEANING[status === "refused" ? detail : status] || "";
}

function outcome({ status, detail }) {
  if (status === "refused") return `refused: ${detail}`;
  if (status === "unanswered") return "no answer yet";
  if (status === "left") return "sent on leaving";
  return detail ? `${status}, without ${detail}` : status;
}

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

showLog();
showLatest(log[0]); // also what the page before this one did last, such as a log-out
if ("member" in document.body.dataset) identify().catch(() => {}); // the shop is unreachable: the next page tries again
