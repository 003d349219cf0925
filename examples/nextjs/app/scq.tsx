"use client";

import { useEffect } from "react";

/** For event handlers and effects, on any route, at any time: before the script has loaded as well as after it. */
export function push(...entries: Scq.Entry[]): void {
  (window._scq = window._scq || []).push(...entries);
}

/** Says who is logged in: with every page load, and again when `user` changes without one. */
export function Identify({ user }: { user: string | null }) {
  useEffect(() => {
    if (!user) return;
    let current = true; // a token that arrives after the log-out is not pushed
    fetch("/scq-token", { cache: "no-store" })
      .then((answer) => (answer.ok ? answer.json() : null))
      .then((body: { token: string } | null) => {
        if (body && current) push(["identify", { token: body.token }]);
      })
      .catch(() => {}); // no network: the next page identifies
    return () => {
      current = false;
    };
  }, [user]);
  return null;
}

/** A button that ends the visit here, and then the session. */
export function LogOut({ action }: { action: () => Promise<void> }) {
  const logOut = () => {
    push(["reset"]);
    return action();
  };
  return (
    <button type="button" onClick={logOut}>
      Log out
    </button>
  );
}
