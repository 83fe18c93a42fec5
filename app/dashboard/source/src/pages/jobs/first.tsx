import { Code } from "../../ui/code";
import { Empty } from "../../ui/page";

export function FirstJob() {
  const snippet = `import openai

client = openai.OpenAI(base_url="${location.origin}/v1", api_key="sk-…")
train = client.files.create(file=open("train.jsonl", "rb"), purpose="fine-tune")
client.fine_tuning.jobs.create(model="my-llama", training_file=train.id)`;
  return (
    <Empty title="No job yet">
      <p>
        <a href="#/new">Start one here</a>, or from Python:
      </p>
      <Code text={snippet} what="Example in Python" />
    </Empty>
  );
}
