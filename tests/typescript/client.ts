// Registers, logs in, sends a mail and reads what became of it, with the types that openapi-typescript made of the
// running service's schema. Prints what it saw as JSON; tests/acceptance/test_typescript_client.py judges it.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Task = components["schemas"]["TaskDetail"];

const baseUrl = process.argv[2] ?? "";
const service = createClient<paths>({ baseUrl });
const who = { email: "typescript@example.com", password: "correct horse battery" };

/** What was answered; anything else is an error that says what came instead. */
function must<T>(answer: { data?: T; error?: unknown; response: Response }): T {
  if (answer.data === undefined) {
    throw new Error(`${answer.response.status} ${answer.response.url} ${JSON.stringify(answer.error)}`);
  }
  return answer.data;
}

const registered = must(await service.POST("/api/v1/register", { body: who }));
const login = must(await service.POST("/api/v1/login", { body: who }));
service.use({
  onRequest({ request }) {
    request.headers.set("Authorization", `Bearer ${login.token}`);
    return request;
  },
});

const accepted = must(
  await service.POST("/api/v1/task/enqueue", {
    params: { header: { "Idempotency-Key": "typescript-1" } },
    body: {
      recipient_email: "typescript-jane@example.com",
      subject: "Grüße",
      body: "Hello Jane,\nit works.",
      tags: ["welcome"],
    },
  }),
);

if (!("task_id" in accepted)) throw new Error("that was a dry run"); // a 200 has another shape than a 202
const id = accepted.task_id;

async function read(): Promise<Task> {
  return must(await service.GET("/api/v1/task/{id}", { params: { path: { id } } }));
}

const deadline = Date.now() + 60_000;
let task = await read();
while (task.status !== "success" && Date.now() < deadline) {
  await new Promise((resolve) => setTimeout(resolve, 100));
  task = await read();
}
const queue = must(await service.GET("/api/v1/task/queue", { params: { query: { status: "success" } } }));
const missing = await service.GET("/api/v1/task/{id}", { params: { path: { id: 2 ** 40 } } });
// @ts-expect-error -- the schema requires a recipient, so this does not compile
const refused = await service.POST("/api/v1/task/enqueue", { body: { subject: "x", body: "x" } });
// @ts-expect-error -- there is no such status to ask for
await service.GET("/api/v1/task/queue", { params: { query: { status: "delivered" } } });

console.log(
  JSON.stringify({
    same: registered.id === login.id,
    status: task.status,
    subject: task.subject,
    tags: task.tags,
    code: task.attempts[0]?.code,
    queue: queue.results.map((each) => each.task_id === id),
    missing: [missing.response.status, missing.error?.code],
    refused: [refused.response.status, refused.error?.errors?.map((each) => each.field)],
  }),
);
