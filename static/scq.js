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
 * A push goes  take → flush → send → settle  and stays in `waiting` until its answer is final. Every
 * request starts at the front of `waiting`: it may repeat what another one carries, but can never
 * overtake it. The proxy knows each push by its id, so a repeat is harmless.
 */
(() => {
  const BATCH_PUSHES = 50; // the proxy takes no more in one request
  const BATCH_BYTES = 30000; // two requests fit into the 64 KiB that browsers allow for keepalive
  const KEEPALIVE_BYTES = 60000;
  const CALLBACK_MS = 10000; // the page is told "timeout" then; delivery goes on
  const SILENCE_MS = 30000; // a request without an answer for so long is repeated
  const MAX_BACKOFF_MS = 60000;
  const MAX_WAIT_S = 3600; // whatever Retry-After says
  const MAX_AGE_MS = 7 * 24 * 3600 * 1000; // the proxy remembers ids for 8 days

  let waiting = []; // pushes without a final answer, oldest first
  let flight = ""; // the pushes of the request on its way (the latest, if several); [] while backing off; "" if idle
  let kept; // whether that request goes on when the page closes
  let failures = 0; // requests since the last one that worked
  let leaving; // pagehide was seen: what is pushed now goes at once, or never
  let session; // the last known session value, for when storage is out of reach
  let endpoint;
  let queue;
  let others = [].push; // what becomes of entries that are not ours

  /** 128 random bits in hex. Not crypto.randomUUID: pages on plain http do not have it. */
  const randomId = () =>
    [...crypto.getRandomValues(new Uint32Array(4))].map((word) => word.toString(16).padStart(8, 0)).join("");

  /** The session value `s`: one per browser, shared between tabs. Given a value, replaces it. */
  const shareSession = (value) => {
    try {
      session = value || localStorage["scq.s"] || session;
      localStorage["scq.s"] = session;
    } catch (error) {} // blocked, full or sandboxed: this page's memory must do
    return session;
  };

  // ---- Pushes ----

  /**
   * Takes one entry of the queue, or passes on what is not ours: another product's method, or arity.
   * What we need of it is read here and now; the page may change its objects afterwards.
   */
  const take = (entry) => {
    // In its own task, like the callbacks: what page code throws reaches the page's error tracking, not us.
    if (typeof entry === "function") return setTimeout(entry);
    const push = {};
    try {
      // "track,object", say. Only reset and consent can do without their object.
      const shape = Array.isArray(entry) && entry.map((part) => (typeof part === "string" ? part : typeof part));
      if (!/^((identify|track),object|(reset|consent,(granted|denied))(,object|,undefined)?)$/.test(shape))
        return others.call(queue, entry);
      Object.assign(push, ...entry); // for success and failure, wherever the object stands
      push.s = shareSession();
      push.made = Date.now();
      // The time first: the proxy finds its newest ids side by side. JSON leaves functions out.
      const json = JSON.stringify({ id: push.made.toString(16) + randomId(), call: entry });
      push.size = new TextEncoder().encode(json).length;
      push.json = JSON.parse(json);
      waiting.push(push);
      setTimeout(settle, CALLBACK_MS, push, "timeout");
    } catch (error) {
      settle(push, "bad-shape"); // circular data, say
    }
  };

  /** Runs failure if there is a reason, else success; once: a later outcome finds no callback any more. */
  const settle = (push, reason, result) => {
    const callback = reason ? push.failure : push.success;
    if (typeof callback === "function") setTimeout(callback, 0, reason || result);
    push.failure = push.success = 0;
  };

  // ---- Delivery ----

  /** Sends the front of the queue. One request at a time keeps the order; but a leaving page cannot wait. */
  const flush = async (now) => {
    if (!now) await 0; // what is pushed in one go is sent in one go
    waiting = waiting.filter((push) => push.made > Date.now() - MAX_AGE_MS);
    let bytes = 0;
    const batch = waiting.filter((push, index) => {
      bytes += push.s === waiting[0].s ? push.size : BATCH_BYTES; // one session per request
      return !index || (index < BATCH_PUSHES && bytes < BATCH_BYTES);
    });
    const isCovered = (push) => kept && flight.includes(push);
    if ((now || !flight) && !batch.every(isCovered)) send(batch);
  };

  /** Flushes whatever we were waiting for: the back-off is over, the network or the page is back. */
  const restart = () => {
    flight = leaving = "";
    flush();
  };

  /** Restarts after a time, unless another request has been sent meanwhile. */
  const restartIn = (ms) => setTimeout((before) => flight === before && restart(), ms, flight);

  /** Up to the call of fetch this is synchronous: on a page that closes, nothing later runs. */
  const send = async (batch) => {
    flight = batch;
    const s = batch[0].s;
    const request = (keepalive) =>
      fetch(endpoint, {
        method: "POST",
        // A string goes as text/plain: no CORS preflight.
        body: JSON.stringify({ v: 1, s, pushes: batch.map((push) => push.json) }),
        credentials: "include",
        keepalive: (kept = keepalive),
      });
    let pause = Math.random() * Math.min(MAX_BACKOFF_MS, 1000 * 2 ** failures++);
    restartIn(SILENCE_MS);
    try {
      // Again without keepalive: other scripts may have used up the quota, which looks like any network error.
      const response = await request(batch[0].size < KEEPALIVE_BYTES).catch(() => request(false));
      const status = response.status;
      // Reading the body to its end also gives back this request's share of the quota.
      const answer = (await response.json().catch(() => 0)) || {};
      if (/408|429|5../.test(status)) {
        pause += Math.min(response.headers.get("Retry-After"), MAX_WAIT_S) * 1000 || 0;
      } else {
        // Without results this throws, and we try again: it was a captive portal, say.
        const results = status < 400 ? answer.results : [];
        batch.forEach((push) => {
          const own = results.find((result) => result.id === push.json.id);
          const result = own || { reason: answer.error || "" + status };
          settle(push, result.reason, result); // only what is refused has a reason
          push.made = 0; // out of the queue
          // A log-in or log-out of which no page saw the answer: what is pushed from now on comes after it.
          if (result.reason === "identity-changed" && shareSession() === s) shareSession(randomId());
        });
        if (answer.s && answer.s !== s) {
          // Someone else logged in, or out: what was pushed here under the old value comes after that.
          if (shareSession() === s) shareSession(answer.s);
          waiting.forEach((push) => push.s === s && (push.s = answer.s));
        }
        pause = failures = 0;
      }
    } catch (error) {}
    if (flight !== batch) return; // a later request has repeated these pushes and carries on
    flight = [];
    if (pause) restartIn(pause);
    else restart();
  };

  // ---- The queue ----

  try {
    const script = document.currentScript;
    endpoint = new URL("push", script.src).href;
    session = randomId();
    queue = window._scq = window._scq || [];
    // Not without fetch; not twice; and an element named "currentScript" must not choose where addresses go.
    if (fetch && !queue.Push && "async" in script) {
      const push = (...entries) => {
        entries.forEach(take);
        flush(leaving);
        return queue.length;
      };
      const early = []; // from before we were here
      for (let i = 0; i < queue.length; i++) {
        try {
          early.push(queue[i]);
        } catch (error) {} // an element that throws when it is read
      }
      queue.length = 0;
      push(...early);
      others = queue.push; // Array's still, or another product's
      queue.push = queue.Push = push; // SendX's documentation writes Push once

      // Leaving: one request with all that has no answer yet. What was pushed a moment ago must not race
      // the identify that is still on its way.
      addEventListener("pagehide", () => {
        flush((leaving = 1));
        // The answer to a log-out is too late for this page; the next one must not go on under the old session value.
        if (waiting.some((push) => push.json.call[0] === "reset")) shareSession(randomId());
      });
      addEventListener("visibilitychange", () => flush(document.hidden));
      // Back from the back/forward cache the old request may be dead.
      addEventListener("pageshow", () => leaving && restart());
      addEventListener("online", restart);
    }
  } catch (error) {} // an old engine, no URL to go by, a frozen queue: the page goes on without us
})();
