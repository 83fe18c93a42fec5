import { moment } from "../lib/format";
import { useAction } from "../lib/hooks";
import { isBase, useModels } from "../lib/models";
import { href } from "../lib/router";
import { useApi, useRefusal, useSession } from "../lib/session";
import type { Model } from "../lib/types";
import { ConfirmButton, CopyButton } from "../ui/buttons";
import { Failure } from "../ui/notice";
import { Empty, Loading, Page } from "../ui/page";
import { Rows } from "../ui/rows";

export function Models() {
  const { data, error, reload } = useModels();
  const bases = data?.data.filter(isBase) ?? [];
  const tuned = data?.data.filter((model) => !isBase(model)) ?? [];
  return (
    <Page title="Models">
      <Failure error={error} doing="The models cannot be read" />
      {!data && !error && <Loading />}
      {data && (
        <>
          <section>
            <h2>Fine-tuned</h2>
            {tuned.length ? (
              <Table models={tuned} onChange={reload} />
            ) : (
              <p class="muted">None yet: a job that succeeds leaves one.</p>
            )}
          </section>
          <section>
            <h2>Base models</h2>
            {bases.length ? (
              <Table models={bases} onChange={reload} />
            ) : (
              <Empty title="No base model">
                <p>
                  Put a folder with a <code>config.json</code> below the models’ folder:{" "}
                  <code>basin up --models DIR</code>.
                </p>
              </Empty>
            )}
          </section>
        </>
      )}
    </Page>
  );
}

function Table({ models, onChange }: { models: Model[]; onChange: () => void }) {
  return (
    <Rows columns={["Model", "Task", "Since"]} last="Actions">
      {models.map((model) => (
        <Row key={model.id} model={model} onChange={onChange} />
      ))}
    </Rows>
  );
}

function Row({ model, onChange }: { model: Model; onChange: () => void }) {
  const api = useApi();
  const refusal = useRefusal("write");
  const self = useSession().self.organization.id;
  const { busy, error, run } = useAction();
  const remove = () =>
    run(async () => {
      await api.delete(`/models/${model.id}`);
      onChange();
    });
  return (
    <tr>
      <th scope="row">
        <span class="name">{model.id}</span>
        {model.owned_by !== self && !isBase(model) && <span class="sub">shared by {model.owned_by}</span>}
      </th>
      <td data-label="Task">{model.task}</td>
      <td data-label="Since">{moment(model.created)}</td>
      <td class="end">
        <span class="actions">
          <CopyButton text={model.id} what={`the name ${model.id}`} />
          {isBase(model) && !refusal && (
            <a class="button" href={href("/new", { model: model.id })} aria-label={`Fine-tune ${model.id}`}>
              Fine-tune
            </a>
          )}
          {model.owned_by === self && (
            <ConfirmButton
              kind="quiet"
              refusal={refusal}
              busy={busy}
              label={`Delete ${model.id}`}
              onClick={remove}
              question={`Delete ${model.id} and its adapter? Its job stays.`}
              answer="Delete it"
            >
              Delete
            </ConfirmButton>
          )}
        </span>
        <Failure error={error} doing="It was not deleted" />
      </td>
    </tr>
  );
}
