import type { Status } from "../lib/types";
import { Icon } from "./icons";

export function StatusBadge({ status }: { status: Status }) {
  return (
    <span class={`status ${status}`}>
      <Icon name={status} />
      {status}
    </span>
  );
}
