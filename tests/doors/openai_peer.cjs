// OpenAI's client for Node against our server: node openai_peer.cjs BASE_URL FILE, with NODE_PATH.
// Prints what it was answered as one line of JSON.
const fs = require("node:fs");
const OpenAI = require("openai").OpenAI;

async function main(baseURL, path) {
  const api = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
  const model = "whisper-1";
  const file = () => fs.createReadStream(path);
  const create = (more) => api.audio.transcriptions.create({ file: file(), model, ...more });
  const found = { formats: {}, models: [], deltas: [] };
  for (const format of ["json", "text", "srt", "vtt"])
    found.formats[format] = await create({ response_format: format });
  found.verbose = await create({
    response_format: "verbose_json",
    timestamp_granularities: ["word", "segment"],
    language: "en",
    chunking_strategy: { type: "server_vad" },
  });
  for await (const event of await create({ stream: true })) found.deltas.push(event);
  for await (const it of api.models.list()) found.models.push(it.id);
  found.model = await api.models.retrieve(model);
  const failed = (error) => ({ status: error.status, code: error.code, param: error.param });
  found.refused = await create({ response_format: "docx" }).catch(failed);
  found.translation = await api.audio.translations.create({ file: file(), model }).catch(failed);
  return found;
}

main(...process.argv.slice(2)).then((found) => console.log(JSON.stringify(found)));
