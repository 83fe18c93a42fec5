export function Logo() {
  return (
    <svg class="logo" viewBox="0 0 32 32" fill="none" aria-hidden="true">
      <rect width="32" height="32" rx="8" />
      <path d="M4 8c4 0 4.5 15 12 15S24 8 28 8" stroke="#fff" stroke-width="2.4" stroke-linecap="round" />
      <circle cx="16" cy="19" r="2.6" />
    </svg>
  );
}
