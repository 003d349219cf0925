// What pages write, and must compile. `wrong.ts` holds what must not.

window._scq = window._scq || [];

const queue = (window._scq ||= []);
const count: number = queue.push(
  ["identify", { token: "…" }],
  ["track", { addTags: ["cart: Teapot"], removeTags: ["trial user"] }],
  ["reset"],
);

queue.push(["identify", { email: "ada@example.com", tags: ["newsletter"], customFields: { Visits: "++1", Plan: 2, Beta: true } }]);
queue.push(["identify", { firstName: "Ada", lastName: "Lovelace", company: "Engines", birthday: "1815-12-10" }]);
queue.push(["track", { removeTags: [] }]);
queue.push(["consent", "granted"], ["consent", "denied"], ["consent", true], ["consent", false]);
queue.push(["reset", undefined], ["reset", null]);
queue.push(["reset", { success: () => location.reload() }]);
queue.push(() => console.log("ready", count));
queue.Push?.(["track", { addTags: ["as SendX's documentation writes it once"] }]);

// An entry made elsewhere, and tags that nobody may change.
const tags = ["a", "b"] as const;
const entry: Scq.Entry = ["track", { addTags: tags }];
queue.push(entry);
queue.push(["track", { addTags: tags }] as const);

queue.push([
  "identify",
  {
    email: "ada@example.com",
    success(result) {
      const words: string[] = [result.id ?? "", result.status ?? "", ...(result.dropped ?? [])];
      if (result.status === "held") console.log(words);
    },
    failure(reason) {
      const said: Partial<Record<Scq.Failure, string>> = { "bad-email": "Please check the address.", timeout: "Noted.", blocked: "Sorry.", "storage-full": "Sorry." };
      console.log(said[reason] ?? reason, reason === "tag-not-allowed", reason === "403");
    },
  },
]);

// Whether the script has loaded, as pages ask it.
const loaded = typeof window._scq === "object" && window._scq.push !== Array.prototype.push;
console.log(loaded);

// Another name for the queue: data-queue.
interface Window {
  _scp?: Scq.Queue;
}
(window._scp = window._scp || []).push(["track", { addTags: ["x"] }]);

// On a page with the embed tag.
_scq.push(["reset"], () => {}, ["track", { addTags: ["a"] }]);

// A site's own type: its array, and its entries, are taken as they are.
const own: Array<[string, ...unknown[]]> = [["track", { addTags: ["a"] }]];
window._scq = own;
_scq.push(...own);
for (const one of own) _scq.push(one);
