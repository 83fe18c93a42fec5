import type { ComponentChildren } from "preact";

import { wordsOf } from "../lib/api";
import { Icon, type IconName } from "./icons";

type Kind = "info" | "warn" | "error" | "good";

const ICONS: Record<Kind, IconName> = { info: "info", warn: "warn", error: "failed", good: "succeeded" };
const WORDS: Record<Kind, string> = { info: "Note", warn: "Warning", error: "Error", good: "Good" };

interface Props {
  kind: Kind;
  title?: string;
  children?: ComponentChildren;
}

export function Notice({ kind, title, children }: Props) {
  return (
    <div class={`notice ${kind}`} role={kind === "error" ? "alert" : undefined}>
      <Icon name={ICONS[kind]} />
      <div>
        <strong>
          <span class="unseen">{WORDS[kind]}: </span>
          {title}
        </strong>
        {children}
      </div>
    </div>
  );
}

/** Show what went wrong, if something did. */
export function Failure({ error, doing }: { error: unknown; doing?: string }) {
  if (!error) return null;
  return (
    <Notice kind="error" title={doing ?? "That did not work"}>
      <p>{wordsOf(error)}</p>
    </Notice>
  );
}
