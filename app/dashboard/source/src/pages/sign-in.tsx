import { useState } from "preact/hooks";

import { useTitle } from "../lib/hooks";
import { ThemeChoice } from "../shell";
import { Logo } from "../ui/logo";
import { Notice } from "../ui/notice";

interface Props {
  reason: string | undefined;
  busy: boolean;
  onKey: (key: string, remember: boolean) => void;
}

export function SignIn({ reason, busy, onKey }: Props) {
  const [key, setKey] = useState("");
  const [remember, setRemember] = useState(false);
  useTitle("Sign in");
  const submit = (event: Event) => {
    event.preventDefault();
    if (key.trim()) onKey(key.trim(), remember);
  };
  return (
    <main class="sign-in">
      <form class="card" onSubmit={submit}>
        <Logo />
        <h1>Sign in to Basin</h1>
        {reason && (
          <Notice kind="error" title="Not signed in">
            <p>{reason}</p>
          </Notice>
        )}
        <div class="field">
          <label for="key">API key</label>
          <input
            id="key"
            type="password"
            autoComplete="current-password"
            placeholder="sk-…"
            value={key}
            autofocus
            required
            aria-describedby="key-hint"
            onInput={(event) => setKey(event.currentTarget.value)}
          />
          <p id="key-hint" class="hint">
            <code>basin up</code> prints one at its first start; <code>basin keys create</code> makes more.
          </p>
        </div>
        <label class="check">
          <input
            type="checkbox"
            checked={remember}
            onChange={(event) => setRemember(event.currentTarget.checked)}
          />
          Remember on this device
        </label>
        <button type="submit" class="main" disabled={busy} aria-busy={busy}>
          Sign in
        </button>
        <p class="hint">
          The key stays in this{" "}
          {remember ? "browser until you sign out" : "tab and is forgotten when it closes"}.
        </p>
      </form>
      <ThemeChoice />
    </main>
  );
}
