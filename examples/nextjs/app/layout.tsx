import { currentUser } from "../lib/session";
import { Identify } from "./scq";

export default async function RootLayout({ children }: { children: React.ReactNode }) {
  const user = await currentUser();
  return (
    <html lang="en">
      <head>
        {/* What `scq-proxy snippet` prints. Plain tags: the first must run before anything that pushes. */}
        <script dangerouslySetInnerHTML={{ __html: "window._scq = window._scq || [];" }} />
        <script async src="/scq/scq.js" />
      </head>
      <body>
        {/* The id says only when somebody else is logged in; who it is stands in the token. */}
        <Identify user={user ? user.id : null} />
        {children}
      </body>
    </html>
  );
}
