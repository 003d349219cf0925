/*
 * The page side of scq-proxy: takes identify, track, reset and consent calls from the `_scq` queue and
 * delivers them, in order, to the proxy on the site's own domain.
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
 * What somebody in front of the proxy turns away three times, a firewall that dislikes one text, say, while the proxy answers to an
 * empty request, is given up: one push never holds up the others.
 *
 * `.ci/shim` makes scq.min.js of this; scq.debug.js is this file with DEBUG switched on. Every byte counts here: `==`
 * where both sides are of one type, `let` alone, no block where an expression does, and the same words twice where a function for them
 * would be longer once compressed.
 */
try {
  let script = document.currentScript;
  // A module, import() and eval have none. And an element that is named "currentScript" must not choose where addresses go.
  if (!(script && script.async + 1)) script = { dataset: {} };
  let { consent, src, queue: name = "_scq", debug } = script.dataset;
  if (DEBUG && !script.src) debug = debug || ""; // who loads this build wants to be told
  let missing = consent == "required"; // consent managers write other words there, for themselves
  let endpoint = "/scq/push"; // the server writes its own path here
  // Beside the script if that is where the server serves it, or where data-src says it is. A copy of the script (a cache's, a bundle's)
  // posts to the page's own origin. Without the user and password that the page's address may have: fetch refuses those.
  let at = new URL(src || script.src || endpoint, location);
  let path = at.pathname.replace(/[^/]*$/, endpoint.match(/[^/]*$/));
  let url = (src || path == endpoint ? at : location).origin + (src ? path : endpoint);
  let queue = self[name] || (self[name] = []); // not assigned twice: to `location` that would load the page again, for ever
  let others = queue.push; // Array's, or another product's: gets what is not ours
  let waiting = []; // pushes without a final answer, oldest first: {call, t: when made, l: length, p: without consent}, and what `flush` adds
  let store; // localStorage, or this page's memory where that is blocked
  let last = 0; // when the newest push was made; one ms later than the one before also where the clock has stepped back
  let failures; // ms that the next pause takes at most; 0 or nothing since an answer
  let busy; // a timer while a request is on its way, or before the next one
  let kept = 0; // how many of `waiting` are in a request that goes on when the page closes
  let leaving; // pagehide was seen: what is pushed now goes at once, or never

  /** JSON, also where an old library has given arrays a toJSON of their own. */
  let json = (value) =>
    JSON.stringify(value, function (key, value) {
      return Array.isArray(this[key]) ? this[key] : value;
    });

  /** True for a log-in, a log-out and a consent: whoever stands behind one may be another person, or want no tracking. */
  let parts = ({ call: [method, about] }) => /^[rc]/.test(method) || about.token || about.email;

  /**
   * Takes one entry of the queue; true for what is not ours: another product's method, or arity. What we need
   * of it is read here and now; the page may change its objects afterwards.
   */
  let take = (entry) => {
    let push = { t: Date.now(), p: missing };
    try {
      let method = entry[0];
      let about = entry[1];
      if (method == "reset" || (method == "consent" && entry.length == 2) || (/^(track|identify)$/.test(method) && Object(about) === about)) {
        ({ success: push.success, failure: push.failure } = Object(about));
        push.i = setTimeout(settle, 1e4, push, "timeout"); // delivery goes on
        if (method == "consent") {
          missing = about !== "granted" && about !== true;
          about = missing ? "denied" : "granted";
          // It goes out though the page is left: what `kept` counts is gone.
          if (missing) waiting.map((old) => settle(old, "consent-denied", (kept = 0)), claim());
        }
        let text = json([method, method == "reset" ? {} : about]);
        push.call = JSON.parse(text); // without functions
        push.l = text.length + 300; // with all that it is stored with
        push.l > 65e3 ? settle(push, "too-long") : waiting.push(push); // the proxy takes 64 KB
      } else {
        if (DEBUG && debug != null && !entry.call) puzzle(entry);
        return !entry.call || !settle({ success: entry }); // a function
      }
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
            (key, push) =>
              /^scq\d/.test(key) &&
              (push = JSON.parse(store[key])).call[0] &&
              waiting.splice(at++, (push.i = 0), push) && ((last = push.t), (push.l = store[key].length), delete store.scq),
          );
      } catch (error) {
        store = {};
      }
  };

  /** Stores what waits and sends its front. One request at a time keeps the order; but a leaving page cannot wait. */
  let flush = async (now, batch = [], size = 0, total = 0, s) => {
    // What is pushed in one go is stored and sent in one go, by the last call. Else all of this is synchronous up to fetch.
    if (!now && (await waiting.length) != waiting.length) return;
    if (document.prerendering) return later(1e3); // the page is only prepared, and may never be shown
    claim();
    waiting.map((push) => (total += push.l));
    waiting = waiting.filter((push, about) => {
      about = push.call[1];
      if (
        // Settled, or older than a week, in ms: the proxy remembers ids for 8 days. A typed address stays on a shared computer for
        // less than one. "Not newer", because a log-in that an earlier version of this script stored has no time.
        !(push.t + (about.email ? 8e7 : 6e8) > Date.now()) ||
        // 256 KB of the site's storage, and no more: then the oldest track goes.
        (total > 25e4 && push.call[0] == "track" && settle(push, "storage-full", (total -= push.l)))
      )
        return !delete store[push.id];
      if (missing && push.p) return 1;
      try {
        // It begins with a number: stored pushes are sorted by it, and the proxy finds its newest ids side by side. Not by
        // crypto.randomUUID: older engines, and pages on plain http, do not have it.
        if (!push.id) push.id = "scq" + (2e15 + (push.t = last = Math.max(last + 1, push.t))) + crypto.getRandomValues(new Uint32Array(4)).join``;
        // One session value for all tabs. Never of an id: that of a log-in gets its cookie once more.
        push.scq = push.scq || (store.scq = store.scq || crypto.getRandomValues(new Uint32Array(4)).join``);
        if (push.z != push.scq) {
          push.z = push.scq;
          // A log-in is stored without its token and address: as a log-out under its id, which the next page sends. If the proxy knows the
          // id, that repeats the log-in; if not, it logs out the person before. Not the same person, who logs in on every page: the
          // number, 32 bits of FNV-1a of the address, tells. A token that cannot be read throws; it would log nobody in.
          store[push.id] = json(
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
        }
      } catch (error) {} // full
      // Alone after a failure. Else some 20 kB and one session value: two requests fit into the 64 KiB that browsers allow for keepalive.
      size += push.scq != (s = s || push.scq) || (failures && !now) ? 3e4 : push.l + 300;
      // What an earlier page left may have been delivered by another tab meanwhile.
      return size > 2e4 && batch[0] ? 1 : (push.i || store[push.id]) && batch.push(push);
    });
    if ((now || !busy) && batch.length > kept) {
      let [front] = batch;
      let probe = front.n & 1; // an empty request: does the proxy answer at all?
      // Again without keepalive: a large push, or other scripts, may be over the quota, which looks like any network error.
      kept = (now || !failures) && batch.length;
      failures = failures > 4e4 ? failures : failures * 2 || 9e2;
      later(failures * 30); // without an answer for so long it is repeated; not so often that these take all connections
      let pause = Math.random() * failures;
      try {
        let response = await fetch(url, {
          method: "POST",
          headers: {}, // for scripts that look into it; a string goes as text/plain: no CORS preflight
          credentials: "include",
          keepalive: kept,
          body: json({ v: 1, s, pushes: probe ? [] : batch }),
        });
        let { status } = response;
        pause += 1e3 * response.headers.get("retry-after") || 0;
        // Reading the body to its end also gives back this request's share of the quota. Another script may have read it already.
        let { error, message, s: next, results = [] } = (await response.json().catch(() => 0)) || 0;
        // Only the proxy answers 202, and in words like these; but its 404 is nobody's.
        let ours = status == 202 || /^(?!not)\w+-|malf/.test(error);
        if (DEBUG && debug != null) report(status, ours, error, message);
        // 408, 429 and 5xx are about the moment.
        if (!/^5|08|29/.test(status))
          if (ours && !probe) {
            batch.map((push, index, result) => {
              result = results[index] || { reason: error };
              settle(push, result.reason, result); // only what is refused has a reason
              // A log-in or log-out of which no page saw the answer: what is pushed from now on comes after it.
              if (/^id/.test(result.reason) && store.scq == s) delete store.scq; // identity-changed
            });
            // Someone else logged in, or out: what was pushed here under the old value comes after that.
            [store, ...waiting].map((one) => next && one.scq == s && (one.scq = next));
            front.t || (pause = failures = 0);
          } else if (!batch[1] && ours == probe) {
            pause = probe * 1e4;
            // 413 is always about the push; else it has to be turned away three times, while the proxy answers. What stands behind a log-in
            // has no one to belong to.
            front.n = status == 413 ? 6 : -~front.n;
            if (front.n > 5)
              waiting.map(
                (push) => (next = push == front || (next && parts(front) && !parts(push))) && settle(push, "blocked", (failures = pause = 0)),
              );
          }
      } catch (error) {
        if (DEBUG && debug != null) report(0);
      }
      later(pause, (kept = 0));
    }
  };

  /** Runs failure if there is a reason, else success; once: a later outcome finds no callback any more. */
  let settle = (push, reason, result) => {
    if (DEBUG && debug != null && push.success !== 0) explain(push, reason, result);
    clearTimeout(push.i);
    // It goes on trying where that is not final: the page's origin or the host name may be listed yet.
    if (!/^(time|ori|unk)/.test(reason)) push.t = 0;
    // By a promise: it ignores what is no function, and what page code throws reaches the page's error tracking, not us.
    return (async () => reason || result)().then(reason ? push.failure : push.success, (push.failure = push.success = 0));
  };

  /** Flushes after a time, whatever is on its way by then: a failed connection can take minutes to fail. */
  let later = (ms) => {
    return (busy = setTimeout(() => flush((busy = kept = 0)), ms, clearTimeout(busy)));
  };

  // Messages of the debug build, for whoever builds the site.

  let say = (kind, text) => console[kind](`[scq] ${text}`);

  /** What became of a push. */
  let explain = (push, reason, result = {}) => {
    let hide = (key, value) => (key == "token" ? "…" : value); // a log-in is nobody else's to read
    let what = push.call
      ? push.call[1] > -1
        ? "a log-in on an earlier page, which got no answer there," // see `flush`
        : JSON.stringify(push.call, hide)
      : "a push";
    let where = result.where && result.where.replace("call[1]", "");
    let names = where && where.match(/\w+/g);
    let part = names && names.reduce((value, name) => hide(name, value && value[name]), push.call[1]);
    let outcome = reason ? `is refused: ${reason}` : `is ${result.status || "done"}`;
    say(
      reason ? "warn" : "info",
      `${what} ${outcome}.` +
        (where ? ` ${where.slice(1)}${typeof part == "string" ? ` is “${part}”` : ""}.` : "") +
        (result.message ? ` ${result.message}` : REMEDIES[reason] || "") +
        (result.dropped ? ` Not offered, and left out: ${result.dropped.join(", ")}.` : ""),
    );
  };

  let REMEDIES = {
    timeout: " No answer for ten seconds; it stays here, and is tried again.",
    blocked: " Three times something in front of the proxy turned it away, and let others through: a firewall or the web server's own limit.",
    "storage-full": " More than 256 KB waited in this browser, so the oldest tracks went.",
    "too-long": " It is over 64 KB.",
    "bad-shape": " It cannot be written as JSON.",
    "consent-denied": " Nothing is tracked after a denial.",
  };

  /** An entry that is left alone. */
  let puzzle = (entry) => {
    let given = typeof entry == "string" ? entry : entry[0];
    let name = typeof given == "string" ? given : "";
    let close = ["identify", "track", "reset", "consent"].find((method) => name.slice(0, 2).toLowerCase() == method.slice(0, 2));
    let form = { identify: ', {token: "…"}', track: ', {addTags: ["…"]}', reset: "", consent: ', "granted"' }[close];
    say(
      "warn",
      `An entry is left alone: ${typeof given == "string" ? `“${name}”` : typeof entry} is ${close == name ? "not of this form" : "not a method of this queue"}.` +
        (close ? ` Did you mean _scq.push(["${close}"${form}])?` : ""),
    );
  };

  /** What is wrong with the way to the proxy. `status`: 0 without an answer. */
  let report = (status, results, error, message) => {
    if (results) return;
    let next = `What was pushed stays in this browser and is tried again, in ${Math.ceil(failures / 1e3)} s at the latest.`;
    if (!status) say("warn", `${url} gives no answer: the proxy is down, or the browser may not ask it (see the line above). ${next}`);
    else if (/^([a-z]+-|malf)/.test(error)) say("warn", `The proxy answers ${status} (${error}). ${message} ${/^5|08|29|03|21/.test(status) ? next : ""}`);
    else say("warn", `${url} is answered ${status} by something that is not the proxy: see how the web server passes this path on. ${next}`);
  };

  /** How this page is set up; once, and then what breaks it later. */
  let greet = () => {
    let version = "VERSION";
    let trust = "TRUST";
    let wait = missing ? "is waited for" : "is not waited for";
    say("info", `scq-proxy ${version}: queue ${name}, endpoint ${url}, consent ${wait}, this browser is ${trust}.`);
    if (consent && !missing) say("warn", `data-consent="${consent}" means nothing here. To wait for consent write data-consent="required".`);
    if (!document.currentScript)
      say("warn", "document.currentScript is null (a module or import()), so that the tag's data- attributes are not read. Load the script with <script async>.");
    addEventListener("securitypolicyviolation", ({ blockedURI, effectiveDirective }) => {
      if (effectiveDirective == "connect-src" && url.startsWith(blockedURI.replace(/[?#].*/, "")))
        say("warn", `The page's Content-Security-Policy blocks ${url}: add ${new URL(url).origin == location.origin ? "'self'" : new URL(url).origin} to its connect-src.`);
    });
    let look = setInterval(() => {
      if (self[name] === queue) return;
      clearInterval(look);
      say("warn", `${name} has been replaced after this script came: what is pushed to the new one goes nowhere. Write window.${name} = window.${name} || [].`);
    }, 500);
  };

  if (DEBUG && debug != null && queue.Push) say("warn", "The script is in this page twice. The second copy does nothing.");
  // Not without fetch, and not twice.
  if (fetch && !queue.Push) {
    // SendX's documentation writes Push once.
    queue.Push = queue.push = (...entries) => {
      return others.apply(queue, entries.filter(take), flush(leaving)); // in this order; apply ignores the last
    };
    if (DEBUG && debug != null) greet();
    addEventListener("pagehide", () => flush((leaving = 1)));
    // Shown again after pagehide, out of the back/forward cache: the old request may be dead.
    addEventListener("visibilitychange", () => flush(document.hidden || (leaving && later((leaving = 0)))));
    addEventListener("online", later);
    // What was pushed before we were here; or later what an earlier page left, which is no reason to make this one wait.
    queue.length ? queue.Push(...queue.splice(0)) : setTimeout(flush);
  }
} catch (error) {
  console.warn(error); // an old engine, no URL to go by, a frozen queue: the page goes on without us
}
