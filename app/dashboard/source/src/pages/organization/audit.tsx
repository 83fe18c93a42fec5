import { useState } from "preact/hooks";

import { moment } from "../../lib/format";
import { useLoaded } from "../../lib/hooks";
import { useApi } from "../../lib/session";
import type { AuditLog, Page } from "../../lib/types";
import { Failure } from "../../ui/notice";
import { Rows } from "../../ui/rows";

/** Who changed what, newest first. */
export function AuditLogView() {
  const api = useApi();
  const [limit, setLimit] = useState(10);
  const { data, error } = useLoaded(
    (signal) => api.get<Page<AuditLog>>("/organization/audit_logs", { limit }, signal),
    [limit],
  );
  return (
    <section class="card">
      <h2>Audit log</h2>
      <Failure error={error} doing="The audit log cannot be read" />
      <Rows columns={["When", "What", "To", "By"]} compact>
        {data?.data.map((each) => (
          <tr key={each.id}>
            <td data-label="When">{moment(each.effective_at)}</td>
            <td data-label="What">{each.type}</td>
            <td data-label="To">
              <code>{each.target}</code>
            </td>
            <td data-label="By">
              {each.actor.api_key ? (
                <>
                  key <code>{each.actor.api_key.id}</code>
                </>
              ) : (
                "the operator"
              )}
            </td>
          </tr>
        ))}
      </Rows>
      {data?.has_more && limit < 100 && (
        <button type="button" class="quiet" onClick={() => setLimit(100)}>
          Show more
        </button>
      )}
    </section>
  );
}
