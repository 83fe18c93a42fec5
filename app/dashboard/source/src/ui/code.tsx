import { CopyButton } from "./buttons";

export function Code({ text, what }: { text: string; what: string }) {
  return (
    <div class="code">
      <CopyButton text={text} what={what} />
      <pre tabIndex={0} aria-label={what}>
        {text}
      </pre>
    </div>
  );
}
