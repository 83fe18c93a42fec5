import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";

import { useTitle } from "../lib/hooks";

interface Props {
  title: string;
  /** What stands over the title: where one is. */
  above?: ComponentChildren;
  beside?: ComponentChildren;
  actions?: ComponentChildren;
  children: ComponentChildren;
}

/** A page: its heading takes the focus, so that a screen reader says where one has come. */
export function Page({ title, above, beside, actions, children }: Props) {
  const heading = useRef<HTMLHeadingElement>(null);
  useTitle(title);
  useEffect(() => heading.current?.focus({ preventScroll: true }), []);
  return (
    <main id="main">
      <header class="page-head">
        <div>
          {above && <p class="above">{above}</p>}
          <div class="title-row">
            <h1 ref={heading} tabIndex={-1}>
              {title}
            </h1>
            {beside}
          </div>
        </div>
        {actions && <div class="actions">{actions}</div>}
      </header>
      {children}
    </main>
  );
}

export function Loading() {
  return (
    <p class="muted" role="status">
      Loading…
    </p>
  );
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <svg viewBox="0 0 120 48" aria-hidden="true">
        <path d="M4 6c22 0 22 36 56 36S94 6 116 6" />
        <circle cx="60" cy="34" r="5" />
      </svg>
      <h2>{title}</h2>
      {children}
    </div>
  );
}
