/*
 * TypeScript types of the queue that scq.js reads. Put this file where your tsconfig.json includes it; nothing is imported.
 *
 *   (window._scq = window._scq || []).push(["track", { addTags: ["cart: Teapot"] }]);
 *
 * Written so, it works before the script has loaded, after it, and where it is blocked.
 */

interface Window {
  /** Made by the embed tag, or by the first push. An array of your own may be assigned: what it holds is read when the script comes. */
  get _scq(): Scq.Queue | undefined;
  set _scq(queue: Scq.Queue | Scq.Untyped[] | undefined);
}

/** The same queue, on pages that have the embed tag. If your code declares `_scq` itself, remove that declaration. */
declare let _scq: Scq.Queue;

declare namespace Scq {
  /** An array until the script has loaded; afterwards the same array, whose push delivers. */
  interface Queue extends Array<Entry> {
    push<M extends Method[]>(...entries: { [I in keyof M]: EntryOf<M[I]> | (() => void) }): number;
    /** Entries whose method only your own code knows, such as those of an `Array<[string, ...unknown[]]>`: nothing in them is checked. */
    push<S extends string>(...entries: (readonly [S, ...unknown[]] & (string extends S ? unknown : never))[]): number;
    push(...entries: Entry[]): number;
    /** SendX's documentation writes it so once. It exists after the script has loaded. */
    Push?(...entries: Entry[]): number;
  }

  /** A function runs when the script is ready. */
  type Entry =
    | readonly ["identify", Identify]
    | readonly ["track", Track]
    | readonly ["reset", (Callbacks | null | undefined)?]
    | readonly ["consent", "granted" | "denied" | boolean]
    | (() => void);

  type Method = Exclude<Entry, () => void>[0];
  type EntryOf<M> = Extract<Entry, readonly [M, ...unknown[]]>;
  type Untyped = readonly [string, ...unknown[]];

  /** Says who the visitor is, by a token of your back end or an address they typed; with neither, sets their own fields. */
  type Identify = Attributes & Callbacks & ({ token?: string; email?: never } | { email?: string; token?: never });

  /** What your SCQ_FIELDS and SCQ_TAGS do not offer, or SendX could not take, is left out, and named in the result's `dropped`. */
  interface Attributes {
    firstName?: string;
    lastName?: string;
    company?: string;
    /** YYYY-MM-DD */
    birthday?: string;
    /** "++1" adds to a number field, "--1" subtracts. */
    customFields?: Record<string, string | number | boolean>;
    tags?: readonly string[];
  }

  /** Tags of the visitor who was identified, or will be. One that is not offered has the whole push refused. */
  type Track = Callbacks &
    ({ addTags: readonly string[]; removeTags?: readonly string[] } | { addTags?: readonly string[]; removeTags: readonly string[] });

  /** Exactly one of them runs, once; neither if the push is delivered by a later page. */
  interface Callbacks {
    success?: (result: Result) => void;
    failure?: (reason: Failure) => void;
  }

  /** Empty if another script on the page has read the answer. */
  interface Result {
    id?: string;
    /** held: until the visitor is identified. duplicate: an earlier try had arrived, which is as good. */
    status?: "accepted" | "held" | "duplicate";
    /** Parts of an identify that were left out. */
    dropped?: string[];
  }

  /**
   * "timeout": no answer yet. "origin-not-allowed": the page's origin is not in SCQ_ORIGINS. After either the script goes on trying.
   * "blocked": something in front of the proxy turned the push away three times, or found it too large.
   * "storage-full": more than 256 KB waited in this browser. Other texts are codes of requests that were refused as a whole.
   */
  type Failure = Reason | "timeout" | "origin-not-allowed" | "blocked" | "storage-full" | (string & {});

  /** Why the proxy refuses a push. The README's table says what each means. */
  type Reason =
    | "bad-shape"
    | "too-long"
    | "unknown-method"
    | "bad-email"
    | "bad-token"
    | "expired-token"
    | "unverified-identity"
    | "identity-changed"
    | "tag-not-allowed"
    | "lane-full"
    | "hold-full"
    | "hold-expired"
    | "gpc"
    | "consent-denied";
}
