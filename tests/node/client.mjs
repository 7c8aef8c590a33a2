// The openai npm package against a running gateway: node client.mjs SCENARIO, with BASE_URL and API_KEY set.
// Prints one JSON line; whatever goes wrong ends it with a stack trace and exit code 1.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const model = "havengate";

const said = (text) => [{ role: "user", content: text }];

async function readStream(text) {
  const stream = await client.chat.completions.create({
    model,
    messages: said(text),
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const choices = chunks.flatMap((chunk) => chunk.choices);
  return {
    role: choices[0].delta.role,
    text: choices.map((choice) => choice.delta.content ?? "").join(""),
    finish: choices.map((choice) => choice.finish_reason).filter(Boolean),
    usage: chunks.at(-1).usage,
    havengate: chunks.find((chunk) => chunk.havengate)?.havengate,
    ids: new Set(chunks.map((chunk) => chunk.id)).size,
  };
}

async function errorOf(promise) {
  try {
    await promise;
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    return { class: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
  throw new Error("the call was expected to fail");
}

const scenarios = {
  async whole([text]) {
    const { data, response } = await client.chat.completions
      .create({ model, messages: said(text), metadata: { region: "GB" } })
      .withResponse();
    return {
      text: data.choices[0].message.content,
      finish: data.choices[0].finish_reason,
      usage: data.usage,
      havengate: data.havengate,
      decision: response.headers.get("x-havengate-decision"),
    };
  },

  stream: ([text]) => readStream(text),

  async helper([text]) {
    const runner = client.chat.completions.stream({ model, messages: said(text) });
    const final = await runner.finalChatCompletion();
    return { text: final.choices[0].message.content, finish: final.choices[0].finish_reason };
  },

  async abort([text]) {
    const stream = await client.chat.completions.create({ model, messages: said(text), stream: true });
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta.content) stream.controller.abort();
    }
    return { aborted: stream.controller.signal.aborted };
  },

  async models() {
    const names = [];
    for await (const each of client.models.list()) names.push(each.id);
    return { names, one: (await client.models.retrieve(model)).id };
  },

  async moderations(texts) {
    const { results } = await client.moderations.create({ input: texts });
    return { flagged: results.map((result) => result.flagged), intent: results.at(-1).categories["self-harm/intent"] };
  },

  async errors() {
    const stranger = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "hg_not_a_key", maxRetries: 0 });
    return [
      await errorOf(stranger.models.list()),
      await errorOf(client.chat.completions.create({ model: "nobody", messages: said("Hello") })),
      await errorOf(client.chat.completions.create({ model, messages: [] })),
      await errorOf(client.chat.completions.create({ model, messages: [], stream: true })),
    ];
  },

  async forbidden() {
    return errorOf(client.chat.completions.create({ model, messages: said("Hello") }));
  },
};

const [name, ...rest] = process.argv.slice(2);
console.log(JSON.stringify(await scenarios[name](rest)));
