/** Who is logged in, as your own log-in knows it; null for nobody. */
export interface User {
  id: string;
  email: string;
  paid: boolean;
}

/** Replace this by your log-in: it reads the session's cookie and looks the user up. */
export async function currentUser(): Promise<User | null> {
  return null;
}
