/* The development build of scq.js, for a tag with data-debug. Made by .ci/shim: change scq.js instead. */
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
 * `.ci/shim` makes scq.min.js of this, and scq.debug.js, in which true is true. Every byte counts here: `==`
 * where both sides are of one type, and no block where an expression does.
 */
try {
  const script = document.currentScript;
  const { queue: name = "_scq", consent, src, debug } = script.dataset;
  const endpoint = new URL("push", script.src || new URL(src, location));
  const queue = (window[name] = window[name] || []);
  let waiting = []; // pushes without a final answer, oldest first: {id, call, s, t: when it was made}
  let parked = consent == "required" && []; // what waits for consent; false or 0 where none is needed
  let busy = document.prerendering && []; // a timer while a request is on its way, or before the next one
  let kept = 0; // how many of `waiting` are in a request that goes on when the page closes
  let count = 1e3; // of pushes, in four digits
  let failures = 0; // requests since the last one that worked
  let leaving; // pagehide was seen: what is pushed now goes at once, or never
  let store; // localStorage, or this page's memory where that is blocked or full
  let others = [].push; // what becomes of entries that are not ours

  /** 128 random bits. Not crypto.randomUUID: older engines, and pages on plain http, do not have it. */
  const randomId = () => crypto.getRandomValues(new Uint32Array(4)).join``;

  /** One session value for all tabs; a new one where somebody's log-out may be among what a page has left behind. */
  const begin = (clean = 1) => (store.scq = (clean && store.scq) || randomId());

  /** Runs failure if there is a reason, else success; once: a later outcome finds no callback any more. */
  const settle = (push, reason, result) => {
    const callback = reason ? push.failure : push.success;
    // In its own task: what page code throws reaches the page's error tracking, not us.
    if (typeof callback == "function") setTimeout(callback, 0, reason || result);
    push.success = push.failure = 0;
    if (true && debug != null) explain(push, reason, result);
  };

  /** Plain words for whoever builds the site. In the debug build only. */
  const explain = (push, reason, result = {}) => {
    const what = push.call
      ? JSON.stringify(push.call, (key, value) => (key == "token" ? "…" : value)) // a log-in is nobody else's to read
      : "a push";
    const where = result.where && result.where.replace("call[1]", "");
    const part = where && where.match(/\w+/g).reduce((value, name) => value && value[name], push.call[1]);
    const outcome = reason ? `is refused: ${reason}` : `is ${result.status || "done"}`;
    console[reason ? "warn" : "info"](
      `[scq] ${what} ${outcome}.` +
        (where ? ` ${where.slice(1)}${typeof part == "string" ? ` is “${part}”` : ""}.` : "") +
        (result.message ? ` ${result.message}` : "") +
        (result.dropped ? ` Not offered, and left out: ${result.dropped.join(", ")}.` : ""),
    );
  };

  /**
   * Takes one entry of the queue, or passes on what is not ours: another product's method, or arity. What we
   * need of it is read here and now; the page may change its objects afterwards.
   */
  const take = (entry) => {
    const push = { t: Date.now(), s: store.scq };
    try {
      if (typeof entry == "function") setTimeout(entry);
      else if (/^((identify|track),.obj|reset,?(\[|$)|consent,[gd])/.test(entry)) {
        // An array as text: "track,[object Object]", say. Callbacks may stand in any object of it.
        ({ success: push.success, failure: push.failure } = Object.assign({}, ...entry));
        setTimeout(settle, 1e4, push, "timeout"); // delivery goes on
        // In the order in which they were pushed: of storage, and for the proxy, which finds its newest ids side by side.
        push.id = "" + push.t + count++ + randomId();
        push.call = JSON.parse(JSON.stringify(entry)); // leaves functions out
        const all = waiting.concat(parked || []);
        if (entry[1] == "granted") {
          if (parked) all.concat(push).forEach((old) => (old.s = old.s || begin()));
          (waiting = all), (parked = 0);
        }
        if (entry[1] == "denied") {
          all.forEach((old) => settle(old, "consent-denied", (old.t = 0)));
          // The proxy is told, unless it never heard of this visitor.
          parked ? settle(push) : waiting.push(push);
          parked = [];
        } else (parked || waiting).push(push);
      } else others.call(queue, entry);
    } catch (error) {
      settle(push, "bad-shape"); // circular data, say
    }
  };

  /** Flushes after a time, whatever is on its way by then: a failed connection can take minutes to fail. */
  const later = (ms) => {
    clearTimeout(busy);
    busy = setTimeout(() => flush((busy = kept = 0)), ms);
  };

  /** Stores what waits and sends its front. One request at a time keeps the order; but a leaving page cannot wait. */
  const flush = async (now) => {
    if (!now) await 0; // what is pushed in one go is sent in one go. Else all of this is synchronous up to fetch
    const batch = [];
    let size = 0;
    waiting = waiting.filter((push) => {
      const key = "scq." + push.id;
      const about = push.call[1] || 0;
      const json = JSON.stringify(push);
      // Settled, or older than the proxy remembers ids. A typed address stays on a shared computer for a day.
      if (push.t < Date.now() - (about.email ? 1 : 7) * 864e5) return !delete store[key];
      try {
        // Not what is only looked at ahead of time; and no log-in.
        if (!document.prerendering && !about.token) store[key] = json;
      } catch (error) {} // full
      // Some 20 kB and one session value: two requests fit into the 64 KiB that browsers allow for keepalive.
      if ((size += (batch[0] || push).s == push.s ? 400 + json.length : 2e4) < 2e4 || !batch[0]) batch.push(push);
      return 1;
    });
    if ((!now && busy) || batch.length <= kept) return;
    later(3e4); // without an answer for so long it is repeated
    const mine = busy;
    const s = batch[0].s;
    /** The session value of all tabs, unless it is another one by now. */
    const move = (to) => store.scq == s && (store.scq = to);
    const request = (keepalive) =>
      fetch(endpoint, {
        method: "POST",
        body: JSON.stringify({ v: 1, s, pushes: batch }), // a string goes as text/plain: no CORS preflight
        credentials: "include",
        keepalive: (kept = keepalive),
      });
    let pause = Math.random() * Math.min(6e4, 1e3 * 2 ** failures++);
    try {
      // Again without keepalive: a large push, or other scripts, may be over the quota, which looks like any network error.
      const response = await request(batch.length).catch(() => request(0));
      pause += response.headers.get("Retry-After") * 1e3 || 0;
      // Reading the body to its end also gives back this request's share of the quota. What is no answer of the
      // proxy (a captive portal's, say) throws here or below, and we try again.
      const { results = [], error, s: next } = await response.json();
      if (!/408|429|5../.test(response.status)) {
        batch.forEach((push, index) => {
          const result = results[index] || { reason: error.trim() };
          settle(push, result.reason, result); // only what is refused has a reason
          push.t = 0; // out of the queue
          // A log-in or log-out of which no page saw the answer: what is pushed from now on comes after it.
          if (result.reason == "identity-changed") move(randomId());
        });
        // Someone else logged in, or out: what was pushed here under the old value comes after that.
        if (next) waiting.forEach((push) => push.s == s && (push.s = next), move(next));
        pause = failures = 0;
      }
    } catch (error) {}
    if (mine == busy) later(pause, (kept = 0)); // else a later request has repeated these pushes and carries on
  };

  // Not without fetch; not twice; and an element named "currentScript" must not choose where addresses go.
  if (fetch && !queue.Push && "async" in script) {
    try {
      store = localStorage;
      Object.keys(store)
        .sort() // by time
        .forEach((key) => key.indexOf("scq.") || waiting.push(JSON.parse(store[key])));
      parked || begin(!waiting[0]);
    } catch (error) {
      store = {};
      begin();
    }
    const early = []; // from before we were here
    for (let i = 0; i < queue.length; i++) {
      try {
        early.push(queue[i]);
      } catch (error) {} // an element that throws when it is read
    }
    queue.length = 0;
    early.forEach(take);
    flush();
    others = queue.push; // Array's still, or another product's
    queue.push = queue.Push = (...entries) => {
      entries.forEach(take);
      flush(leaving);
      return queue.length;
    }; // SendX's documentation writes Push once
    addEventListener("pagehide", () => flush((leaving = 1)));
    addEventListener("visibilitychange", () => flush(document.hidden));
    addEventListener("pageshow", () => leaving && later((leaving = 0))); // back: the old request may be dead
    addEventListener("online", later);
    document.addEventListener("prerenderingchange", later);
  }
} catch (error) {} // an old engine, no URL to go by, a frozen queue: the page goes on without us
