import { spawnSync } from "node:child_process"
import { mkdirSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"

const root = fileURLToPath(new URL("../../..", import.meta.url))
const folder = join(root, "packages", "entity", "test", ".types")

const account = `
import { Context, Effect, Layer, Schema } from "effect"
import { Rpc } from "effect/rpc"
import { Journal } from "@effect-cassandra/journal/Journal"
import { Decision, PersistentEntity, ReadOnly, TestEntity } from "@effect-cassandra/entity"

const Deposited = Schema.TaggedStruct("Deposited", { cents: Schema.Int })
const Closed = Schema.TaggedStruct("Closed", {})
class Overdraft extends Schema.TaggedError<Overdraft>()("Overdraft", { balance: Schema.Int }) {}
class Other extends Schema.TaggedError<Other>()("Other", {}) {}
class Rates extends Context.Service<Rates, { readonly rate: number }>()("Rates") {}

const Account = PersistentEntity.make("Account", {
  state: Schema.Struct({ balance: Schema.Int }),
  initialState: { balance: 0 },
  events: [Deposited, Closed],
  commands: [
    Rpc.make("Deposit", { payload: { cents: Schema.Int }, success: Schema.Int }),
    Rpc.make("Withdraw", { payload: { cents: Schema.Int }, success: Schema.Int, error: Overdraft }),
    ReadOnly.local(Rpc.make("Balance", { success: Schema.Int }))
  ]
})
const { apply, commands } = Account.behavior({
  apply: (state, event) => (event._tag === "Deposited" ? { balance: state.balance + event.cents } : state),
  commands: {
    Deposit: (_, { cents }) => Decision.persist(Deposited.make({ cents }), (after) => after.balance),
    Withdraw: ({ balance }) => Decision.reject(new Overdraft({ balance })),
    Balance: ({ balance }) => Decision.reply(balance)
  }
})
const memory = Layer.provide(Journal.layerMemory())
const ada = Effect.map(Account, (accounts) => accounts("ada"))
`

/** A behavior with one handler of its own. */
const withDeposit = (handler: string) => `Account.layer({ apply, commands: { ...commands, Deposit: ${handler} } })`

const test = "TestEntity.make(Account, { apply, commands })"

const reactions = `TestEntity.reactions(Account, Account.behavior({
  apply,
  commands,
  reactions: { Closed: (_, { self }) => Effect.ignore(self.Deposit({ cents: 1 })) }
}))`

const right = {
  "a command with its reply and its errors":
    "Effect.flatMap(ada, (a) => a.Withdraw({ cents: 1 })) satisfies Effect.Effect<number, { readonly _tag: 'Overdraft' | 'EntityError' }, any>",
  "an event as a plain object": withDeposit(
    "(_, { cents }) => Decision.persist({ _tag: 'Deposited', cents }, (after) => after.balance)"
  ),
  "several events at once": withDeposit(
    "(_, { cents }) => Decision.persist([Deposited.make({ cents }), Closed.make({})], (after) => after.balance)"
  ),
  "a handler with a service, which the layer then needs": `Effect.runPromise(Effect.provide(ada, ${withDeposit(
    "() => Effect.map(Rates, ({ rate }) => Decision.reply(rate))"
  )}.pipe(memory, Layer.provide(Layer.succeed(Rates, { rate: 1 })))))`,
  "reactions and timers": `Account.layer({
    apply,
    commands,
    reactions: { Deposited: ({ cents }, { self }) => Effect.ignore(self.Withdraw({ cents })) },
    timers: { Closed: { after: "1 day", run: () => Effect.flatMap(Rates, ({ rate }) => Effect.log(rate)) } }
  }) satisfies Layer.Layer<any, never, Journal | Rates>`,
  "a test": `${test}.given({ _tag: "Closed" }).when("Balance").expect({ reply: 0, state: { balance: 0 } }) satisfies Effect.Effect<unknown>`,
  "a test of reactions": `${reactions}.given(Account, { Deposit: Decision.reply(1), Withdraw: Decision.reject(new Overdraft({ balance: 0 })) })
    .when({ _tag: "Closed" })
    .expect([{ to: "Account", id: "test", command: "Deposit", payload: { cents: 1 }, after: "1 day" }]) satisfies Effect.Effect<unknown>`
}

/** Programs that must not compile, and what the compiler says of each. */
const wrong: Record<string, readonly [program: string, says: RegExp]> = {
  "in a test of reactions: a wrong answer": [
    `${reactions}.given(Account, { Deposit: Decision.reply("1") })`,
    /'string' is not assignable to type 'number'/
  ],
  "in a test of reactions: an error that the command does not declare": [
    `${reactions}.given(Account, { Withdraw: Decision.reject(new Other()) })`,
    /'Reject<Other>' is not assignable to type .*Overdraft/
  ],
  "in a test of reactions: an unknown event": [
    `${reactions}.when({ _tag: "Close" })`,
    /'"Close"' is not assignable to type '"(Deposited|Closed)" \| "(Deposited|Closed)"'/
  ],
  "an unknown command": ["Effect.flatMap(ada, (a) => a.Deposti({ cents: 1 }))", /'Deposti' .* Did you mean 'Deposit'/],
  "a wrong payload": [
    "Effect.flatMap(ada, (a) => a.Deposit({ cents: '1' }))",
    /'string' is not assignable to type 'number'/
  ],
  "a payload left out": ["Effect.flatMap(ada, (a) => a.Deposit())", /Expected 1 arguments, but got 0/],
  "a payload where there is none": ["Effect.flatMap(ada, (a) => a.Balance({ cents: 1 }))", /Expected 0 arguments/],
  "a reply taken for something else": [
    "Effect.flatMap(ada, (a) => Effect.map(a.Deposit({ cents: 1 }), (reply) => reply.toUpperCase()))",
    /'toUpperCase' does not exist on type 'number'/
  ],
  "errors that nobody handles": [
    "Effect.flatMap(ada, (a) => a.Withdraw({ cents: 1 })) satisfies Effect.Effect<number, never, any>",
    /'EntityError \| Overdraft' is not assignable to type 'never'/
  ],
  "a wrong reply": [
    withDeposit("() => Decision.reply('done')"),
    /'Reply<string>' is not assignable to type 'Reply<number>'.*'string' is not assignable to type 'number'/s
  ],
  "a wrong reply after events": [
    withDeposit("(_, { cents }) => Decision.persist(Deposited.make({ cents }), () => 'done')"),
    /'string' is not assignable to type 'number'/
  ],
  "a reply forgotten": [
    withDeposit("(_, { cents }) => Decision.persist(Deposited.make({ cents }))"),
    /'void' is not assignable to type 'number'/
  ],
  "an event outside the union": [
    withDeposit("() => Decision.persist({ _tag: 'Opened' }, (after) => after.balance)"),
    /'{ _tag: "Opened"; }' is not assignable to type '{ readonly _tag: "Closed"; } \|/
  ],
  "an event of the wrong shape": [
    withDeposit("(_, { cents }) => Decision.persist({ _tag: 'Deposited', amount: cents }, (after) => after.balance)"),
    /Property 'cents' is missing/
  ],
  "a missing handler": [
    "Account.layer({ apply, commands: { Deposit: commands.Deposit, Balance: commands.Balance } })",
    /Property 'Withdraw' is missing/
  ],
  "a handler of no command": [
    "Account.layer({ apply, commands: { ...commands, Transfer: () => Decision.reply(1) } })",
    /'Transfer' does not exist in type 'Handlers</
  ],
  "a rejection that the command does not declare": [
    withDeposit("() => Decision.reject(new Other())"),
    /'Reject<Other>' is not assignable/
  ],
  "an effect that fails with an error that the command does not declare": [
    withDeposit("() => Effect.fail(new Other())"),
    /'Other' is not assignable to type 'never'/
  ],
  "a read-only command that stores": [
    "Account.layer({ apply, commands: { ...commands, Balance: () => Decision.persist(Closed.make({})) } })",
    /'Persist<.*' is not assignable to type '.*Reject<never> \| Reply<number>'/
  ],
  "an apply that forgets an event": [
    "Account.layer({ apply: (state, event) => { switch (event._tag) { case 'Deposited': return state } }, commands })",
    /'undefined' is not assignable to type '{ readonly balance: number; }'/
  ],
  "an apply with another state": [
    "Account.layer({ apply: () => 1, commands })",
    /'number' is not assignable to type '{ readonly balance: number; }'/
  ],
  "an initial state of another type": [
    "PersistentEntity.make('A', { state: Schema.Int, initialState: '0', events: [Deposited], commands: [] })",
    /'string' is not assignable to type 'number'/
  ],
  "an event without a _tag": [
    "PersistentEntity.make('A', { state: Schema.Int, initialState: 0, events: [Schema.Struct({ cents: Schema.Int })], commands: [] })",
    /is not assignable to type 'EventSchema'/
  ],
  "a service that is not provided": [
    `Effect.runPromise(Effect.provide(ada, ${withDeposit("() => Effect.map(Rates, ({ rate }) => Decision.reply(rate))")}.pipe(memory)))`,
    /'Rates' is not assignable to type 'never'/
  ],
  "no journal": [
    "Effect.runPromise(Effect.provide(ada, Account.layer({ apply, commands })))",
    /'Journal' is not assignable to type 'never'/
  ],
  "a reaction that leaves a rejection unhandled": [
    "Account.layer({ apply, commands, reactions: { Deposited: (_, { self }) => self.Withdraw({ cents: 1 }) } })",
    /'Overdraft' is not assignable to type 'EntityError'|'EntityError \| Overdraft' is not assignable to type 'EntityError'/
  ],
  "a reaction to an unknown event": [
    "Account.layer({ apply, commands, reactions: { Opened: () => Effect.void } })",
    /'Opened' does not exist in type/
  ],
  "a test of an unknown command": [`${test}.when("Transfer")`, /'"Transfer"' is not assignable/],
  "a test with a wrong payload": [`${test}.when("Deposit", {})`, /Property 'cents' is missing/],
  "a test that expects what cannot be replied": [
    `${test}.when("Deposit", { cents: 1 }).expect({ reply: "1" })`,
    /'string' is not assignable to type 'number'/
  ],
  "a test that expects an error of another command": [
    `${test}.when("Deposit", { cents: 1 }).expect({ rejection: new Overdraft({ balance: 0 }) })`,
    /'Overdraft' is not assignable to type 'never'/
  ],
  "a test given what cannot have happened": [
    `${test}.given({ _tag: "Opened" })`,
    /'"Opened"' is not assignable to type '"Closed" \| "Deposited"'/
  ]
}

describe("the compiler", () => {
  const fileOf = (name: string) => `${name.replace(/\W+/g, "-")}.ts`
  let said: ReadonlyMap<string, ReadonlyArray<string>>

  beforeAll(() => {
    rmSync(folder, { recursive: true, force: true })
    mkdirSync(folder)
    for (const [name, program] of [
      ...Object.entries(right),
      ...Object.entries(wrong).map(([name, [program]]) => [name, program] as const)
    ]) {
      writeFileSync(join(folder, fileOf(name)), `${account}\nexport const program = ${program}\n`)
    }
    const compilerOptions = { noEmit: true, noUnusedLocals: false }
    writeFileSync(
      join(folder, "tsconfig.json"),
      JSON.stringify({ extends: "../../../../tsconfig.json", compilerOptions, include: ["*.ts"] })
    )
    const tsc = join(root, "node_modules", "typescript", "bin", "tsc")
    const { stdout } = spawnSync(process.execPath, [tsc, "--pretty", "false", "--project", folder], {
      cwd: folder,
      encoding: "utf8"
    })
    const messages = new Map<string, Array<string>>()
    for (const message of stdout.split(/^(?=\S+\.ts\()/m)) {
      const file = /^(\S+\.ts)\(/.exec(message)?.[1]
      if (file !== undefined) messages.set(file, [...(messages.get(file) ?? []), message])
    }
    said = messages
  })
  afterAll(() => rmSync(folder, { recursive: true, force: true }))

  for (const name of Object.keys(right)) {
    it(`accepts ${name}`, () => assert.isUndefined(said.get(fileOf(name)), said.get(fileOf(name))?.join("\n")))
  }
  for (const [name, [, says]] of Object.entries(wrong)) {
    it(`refuses ${name}, in one message that says what is wrong`, () => {
      const messages = said.get(fileOf(name)) ?? []
      assert.strictEqual(messages.length, 1, messages.join("\n"))
      assert.match(messages[0]!, says)
    })
  }
})
