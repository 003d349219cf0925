/*
 * The page side of scq-proxy: takes identify, track, reset and consent calls from the `_scq` queue and
 * delivers them, in order, to `push` beside this script's own URL.
 *
 *   _scq.push(["identify", {token: "…", success: fn, failure: fn}]);
 *   _scq.push(["track", {addTags: ["paid user"]}]);
 *   _scq.push(["consent", "granted"]);  _scq.push(["reset"]);  _scq.push(function () { … });
 *
 * It needs nothing else, sets no cookies, never throws into the page, and leaves entries that are not
 * its own in the array for whoever they belong to.
 *
 * A push goes  take → flush → settle  and stays in `waiting`, and in localStorage, until its answer is
 * final. Every request starts at the front of `waiting`: it may repeat what another one, or another page,
 * carries, but can never overtake it. The proxy knows each push by its id, so a repeat is harmless. What a
 * page could not deliver is taken over by the next page of the site, before that page's own pushes.
 *
 * `.ci/shim` makes scq.min.js of this; scq.debug.js is this file with DEBUG switched on. Every byte counts here: `==`
 * where both sides are of one type, `let` alone, no block where an expression does, and the same words twice where a function for them
 * would be longer once compressed.
 */
try {
  let script = document.currentScript;
  let { consent: missing, src = script.src, queue: name = "_scq", debug } = script.dataset;
  let queue = self[name] || (self[name] = []); // not assigned twice: to `location` that would load the page again, for ever
  let others = queue.push; // Array's, or another product's: gets what is not ours
  let waiting = []; // pushes without a final answer, oldest first: {id, call, scq: session value, t: when made, p: without consent}
  let store; // localStorage, or this page's memory where that is blocked
  let count = 1e3; // of ids, in four digits
  let failures; // ms that the next pause takes at most; 0 or nothing since an answer
  let busy; // a timer while a request is on its way, or before the next one
  let kept = 0; // how many of `waiting` are in a request that goes on when the page closes
  let leaving; // pagehide was seen: what is pushed now goes at once, or never

  /**
   * Takes one entry of the queue; true for what is not ours: another product's method, or arity. What we need
   * of it is read here and now; the page may change its objects afterwards.
   */
  let take = (entry) => {
    let push = { t: Date.now(), p: missing };
    try {
      // An array as text: "track,[object Object]", say.
      if (/^((track|identify|reset),\[|reset$|consent,[dg])/.test(entry)) {
        ({ success: push.success, failure: push.failure } = entry[1] || 0);
        setTimeout(settle, 1e4, push, "timeout"); // delivery goes on
        // It begins with the time: stored pushes are sorted by it, and the proxy finds its newest ids side by side. Not by
        // crypto.randomUUID: older engines, and pages on plain http, do not have it.
        push.id = "scq" + push.t + count++ + crypto.getRandomValues(new Uint32Array(4)).join``;
        push.call = JSON.parse(JSON.stringify(entry)); // leaves functions out
        // Of our methods only consent is before "i". It goes out though the page is left: what `kept` counts is gone.
        if (entry[0] < "i" && (missing = entry[1] != "granted"))
          waiting.map((old) => settle(old, "consent-denied", (kept = old.t = 0)), claim());
        waiting.push(push);
      } else return !entry.call || !settle({ success: entry }); // a function
    } catch (error) {
      settle(push, "bad-shape"); // circular data, say
    }
  };

  /**
   * Takes over what earlier pages left behind, once, to go before our own. Not while the page loads: a page's first touch of
   * localStorage may wait for the disk.
   */
  let claim = (at = 0) => {
    if (!store)
      try {
        store = localStorage;
        // By time. What has no call is none of ours: we do without storage. And a new session value: a log-out may be among it.
        Object.keys(store)
          .sort()
          .map(
            (key) =>
              /^scq1/.test(key) &&
              JSON.parse(store[key]).call[0] &&
              waiting.splice(at++, 0, JSON.parse(store[key])) &&
              delete store.scq,
          );
      } catch (error) {
        store = {};
      }
  };

  /** Stores what waits and sends its front. One request at a time keeps the order; but a leaving page cannot wait. */
  let flush = async (now, batch = [], size = 0, s) => {
    // What is pushed in one go is stored and sent in one go, by the last call. Else all of this is synchronous up to fetch.
    if (!now && (await count) != count) return;
    if (document.prerendering) return later(1e3); // the page is only prepared, and may never be shown
    claim();
    waiting = waiting.filter((push, about) => {
      about = push.call[1] || 0;
      // Settled, or older than a week, in ms: the proxy remembers ids for 8 days. A typed address stays on a shared computer for
      // less than one. "Not newer", because a log-in that an earlier version of this script stored has no time.
      if (!(push.t + (about.email ? 8e7 : 6e8) > Date.now())) return !delete store[push.id];
      if (missing && push.p) return 1;
      try {
        // One session value for all tabs. Never of an id: that of a log-in gets its cookie once more.
        push.scq = push.scq || (store.scq = store.scq || crypto.getRandomValues(new Uint32Array(4)).join``);
        // A log-in is stored without its token and address: as a log-out under its id, which the next page sends. If the proxy knows the
        // id, that repeats the log-in; if not, it logs out the person before. Not the same person, who logs in on every page: the
        // number, 32 bits of FNV-1a of the address, tells. A token that cannot be read throws; it would log nobody in.
        store[push.id] = JSON.stringify(
          about.token
            ? {
                ...push,
                call: [
                  "reset",
                  JSON.parse(atob(about.token.split`.`[1].replace(/-/g, "+").replace(/_/g, "/")))
                    .email.trim()
                    .toLowerCase()
                    .split``.reduce((mark, letter) => Math.imul(mark ^ letter.charCodeAt(), 16777619), 2166136261) >>> 0,
                ],
              }
            : push,
        );
      } catch (error) {} // full
      // Some 20 kB and one session value: two requests fit into the 64 KiB that browsers allow for keepalive.
      size += push.scq == (s = s || push.scq) ? JSON.stringify(push).length + 500 : 2e4;
      return (size > 2e4 && batch[0]) || batch.push(push);
    });
    if ((now || !busy) && batch.length > kept) {
      // Again without keepalive: a large push, or other scripts, may be over the quota, which looks like any network error.
      kept = (now || !failures) && batch.length;
      failures = failures > 4e4 ? failures : failures * 2 || 9e2;
      later(failures * 30); // without an answer for so long it is repeated; not so often that these take all connections
      let pause = Math.random() * failures;
      try {
        let response = await fetch(new URL("push", new URL(src, location)), {
          method: "POST",
          credentials: "include",
          keepalive: kept,
          body: JSON.stringify({ v: 1, s, pushes: batch }), // a string goes as text/plain: no CORS preflight
        });
        pause += 1e3 * response.headers.get("retry-after") || 0;
        // Reading the body to its end also gives back this request's share of the quota. What is no answer of the
        // proxy (a captive portal's, say) throws here or below, and we try again; as with 404, which is nobody's, 408, 429 and 5xx.
        let { error, s: next, results = 0 } = await response.json();
        if (!/04|08|29|5/.test(response.status)) {
          batch.map((push, index, result) => {
            result = results[index] || { reason: error.trim() };
            settle(push, result.reason, result, (push.t = 0)); // only what is refused has a reason
            // A log-in or log-out of which no page saw the answer: what is pushed from now on comes after it.
            if (/^id/.test(result.reason) && store.scq == s) delete store.scq; // identity-changed
          });
          // Someone else logged in, or out: what was pushed here under the old value comes after that.
          [store, ...waiting].map((one) => next && one.scq == s && (one.scq = next));
          pause = failures = 0;
        }
      } catch (error) {}
      later(pause, (kept = 0));
    }
  };

  /** Runs failure if there is a reason, else success; once: a later outcome finds no callback any more. */
  let settle = (push, reason, result) => {
    if (DEBUG && debug != null && push.success !== 0) explain(push, reason, result);
    // By a promise: it ignores what is no function, and what page code throws reaches the page's error tracking, not us.
    return (async () => reason || result)().then(reason ? push.failure : push.success, (push.failure = push.success = 0));
  };

  /** Plain words for whoever builds the site. In the debug build only. */
  let explain = (push, reason, result = {}) => {
    let what = push.call
      ? push.call[1] > -1
        ? "a log-in on an earlier page, which got no answer there," // see `flush`
        : JSON.stringify(push.call, (key, value) => (key == "token" ? "…" : value)) // a log-in is nobody else's to read
      : "a push";
    let where = result.where && result.where.replace("call[1]", "");
    let part = where && where.match(/\w+/g).reduce((value, name) => value && value[name], push.call[1]);
    let outcome = reason ? `is refused: ${reason}` : `is ${result.status || "done"}`;
    console[reason ? "warn" : "info"](
      `[scq] ${what} ${outcome}.` +
        (where ? ` ${where.slice(1)}${typeof part == "string" ? ` is “${part}”` : ""}.` : "") +
        (result.message ? ` ${result.message}` : "") +
        (result.dropped ? ` Not offered, and left out: ${result.dropped.join(", ")}.` : ""),
    );
  };

  /** Flushes after a time, whatever is on its way by then: a failed connection can take minutes to fail. */
  let later = (ms) => {
    return (busy = setTimeout(() => flush((busy = kept = 0)), ms, clearTimeout(busy)));
  };

  // Not without fetch; not twice; and an element named "currentScript" must not choose where addresses go.
  if (fetch && script.async + 1 && !queue.Push) {
    // SendX's documentation writes Push once.
    queue.Push = queue.push = (...entries) => {
      return others.apply(queue, entries.filter(take), flush(leaving)); // in this order; apply ignores the last
    };
    addEventListener("pagehide", () => flush((leaving = 1)));
    // Shown again after pagehide, out of the back/forward cache: the old request may be dead.
    addEventListener("visibilitychange", () => flush(document.hidden || (leaving && later((leaving = 0)))));
    addEventListener("online", later);
    // What was pushed before we were here; or later what an earlier page left, which is no reason to make this one wait.
    queue.length ? queue.Push(...queue.splice(0)) : setTimeout(flush);
  }
} catch (error) {} // an old engine, no URL to go by, a frozen queue: the page goes on without us
