// Who is signed in: the key stays in this tab, or on this device where that was asked.
import { createContext } from "preact";
import { useContext } from "preact/hooks";

import type { Api } from "./api";
import type { Scope, Self } from "./types";

const NAME = "basin.key";

export interface Session {
  api: Api;
  self: Self;
  signOut: (reason?: string) => void;
}

export const SessionContext = createContext<Session | null>(null);

export function useSession(): Session {
  const session = useContext(SessionContext);
  if (!session) throw new Error("Nobody is signed in.");
  return session;
}

export function useApi(): Api {
  return useSession().api;
}

/** Return why this key may not do what needs the scope; null when it may. */
export function useRefusal(needed: Scope): string | null {
  const { self } = useSession();
  const order: Scope[] = ["read", "write", "admin", "operator"];
  if (order.indexOf(self.scope) >= order.indexOf(needed)) return null;
  return `Your key may ${self.scope === "read" ? "look only" : "not administer"}: this needs the scope “${needed}”.`;
}

export function keptKey(): string | null {
  return sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME);
}

export function keepKey(key: string, remember: boolean): void {
  forgetKey();
  (remember ? localStorage : sessionStorage).setItem(NAME, key);
}

export function forgetKey(): void {
  sessionStorage.removeItem(NAME);
  localStorage.removeItem(NAME);
}
