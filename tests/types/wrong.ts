// Mistakes that the types must find: under each comment exactly one statement, which must not compile.

// @ts-expect-error The queue may not be there yet.
window._scq.push(["reset"]);

const pages = (window._scq = window._scq || []);

// @ts-expect-error A method with a typing mistake.
pages.push(["trak", { addTags: ["a"] }]);
// @ts-expect-error No object.
pages.push(["identify"]);
// @ts-expect-error Not an array.
pages.push("track", { addTags: ["a"] });
// @ts-expect-error One text is no list.
pages.push(["track", { addTags: "a" }]);
// @ts-expect-error A tag is text.
pages.push(["track", { addTags: [1] }]);
// @ts-expect-error Neither added nor removed.
pages.push(["track", {}]);
// @ts-expect-error SendX's key is addTags.
pages.push(["track", { addTag: ["a"] }]);
// @ts-expect-error A track names no address: it means the visitor who was identified.
pages.push(["track", { addTags: ["a"], email: "ada@example.com" }]);
// @ts-expect-error A third part.
pages.push(["track", { addTags: ["a"] }, 1]);
// @ts-expect-error A token's address wins: say one of them.
pages.push(["identify", { token: "…", email: "ada@example.com" }]);
// @ts-expect-error Only your back end may change an address.
pages.push(["identify", { email: "ada@example.com", newEmail: "ada@example.org" }]);
// @ts-expect-error SendX's key is firstName.
pages.push(["identify", { firstname: "Ada" }]);
// @ts-expect-error A custom field is one value.
pages.push(["identify", { customFields: { Colours: ["red"] } }]);
// @ts-expect-error Not a function.
pages.push(["identify", { firstName: "Ada", success: "thanks()" }]);
// @ts-expect-error Neither granted nor denied.
pages.push(["consent", "yes"]);
// @ts-expect-error It takes effect in the page at once: there is nothing to wait for.
pages.push(["consent", "granted", { success: () => {} }]);
// @ts-expect-error Nothing said.
pages.push(["consent"]);
// @ts-expect-error Whom to forget is no question.
pages.push(["reset", { email: "ada@example.com" }]);
// @ts-expect-error A function that wants something.
pages.push((element: Element) => element.remove());
// @ts-expect-error No such status.
pages.push(["track", { addTags: ["a"], success: (result) => result.status === "refused" }]);
// @ts-expect-error No such reason.
const reason: Scq.Reason = "tag-not-alowed";
// @ts-expect-error The bare queue checks as well.
_scq.push(["trak", { addTags: ["a"] }]);
// @ts-expect-error One good entry does not excuse the other.
_scq.push(["reset"], ["track", { addTags: "a" }]);
// @ts-expect-error A method of one's own, known to be wrong.
_scq.push(["trak" as const, {}]);
