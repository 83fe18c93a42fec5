import type { ComponentChildren } from "preact";
import { useRef, useState } from "preact/hooks";

interface Props {
  onClick: () => void;
  children: ComponentChildren;
  kind?: "main" | "plain" | "danger" | "quiet";
  /** Why it cannot be pressed; null or nothing when it can. */
  refusal?: string | null | undefined;
  busy?: boolean;
  label?: string;
}

export function Button({ onClick, children, kind = "plain", refusal, busy = false, label }: Props) {
  return (
    <button
      type="button"
      class={kind}
      disabled={busy || !!refusal}
      title={refusal ?? undefined}
      aria-label={label}
      aria-busy={busy}
      onClick={onClick}
    >
      {children}
    </button>
  );
}

interface ConfirmProps extends Props {
  question: string;
  /** What the button that does it says. */
  answer: string;
}

/** A button that asks before it does what cannot be undone. */
export function ConfirmButton({ question, answer, onClick, ...button }: ConfirmProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const close = () => dialog.current?.close();
  return (
    <>
      <Button {...button} onClick={() => dialog.current?.showModal()} />
      <dialog ref={dialog} aria-label={question}>
        <p>{question}</p>
        <div class="actions">
          <Button onClick={close}>No</Button>
          <Button
            kind="danger"
            onClick={() => {
              close();
              onClick();
            }}
          >
            {answer}
          </Button>
        </div>
      </dialog>
    </>
  );
}

export function CopyButton({ text, what }: { text: string; what: string }) {
  const [copied, setCopied] = useState(false);
  const copy = () =>
    navigator.clipboard.writeText(text).then(() => {
      setCopied(true);
      setTimeout(() => setCopied(false), 1500);
    });
  if (!navigator.clipboard) return null; // a page over plain http has none
  return (
    <button type="button" class="quiet" aria-label={`Copy ${what}`} onClick={copy}>
      {copied ? "Copied" : "Copy"}
    </button>
  );
}
