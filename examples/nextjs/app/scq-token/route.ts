import { createHmac } from "node:crypto";

import { currentUser } from "../../lib/session";

export const runtime = "nodejs"; // for node:crypto
export const dynamic = "force-dynamic"; // never from a cache: a token is for one session

const noStore = { "Cache-Control": "no-store" };

/** A token for whoever is logged in, good for ten minutes. It is fetched by the page, and never stands in its HTML. */
export async function GET(): Promise<Response> {
  const user = await currentUser();
  if (!user) return Response.json({}, { status: 401, headers: noStore });
  // `contact` is optional: what you vouch for, which the proxy's lists do not restrict.
  const contact = user.paid ? { tags: ["paid user"] } : undefined;
  return Response.json({ token: sign({ email: user.email, contact }) }, { headers: noStore });
}

function sign(claims: { email: string; contact?: object }): string {
  const key = process.env.IDENTITY_KEY;
  if (!key) throw new Error("IDENTITY_KEY is not set: it is the secret that the proxy has in SCQ_IDENTITY_KEYS");
  const now = Math.floor(Date.now() / 1000);
  const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const signed = `${encode({ alg: "HS256", typ: "JWT" })}.${encode({ ...claims, iat: now, exp: now + 600, aud: "scq" })}`;
  return `${signed}.${createHmac("sha256", key).update(signed).digest("base64url")}`;
}
