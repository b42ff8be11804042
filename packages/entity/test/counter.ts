import { Context, Effect, Schema } from "effect"
import { Rpc } from "effect/rpc"
import * as Decision from "../src/Decision.ts"
import * as PersistentEntity from "../src/PersistentEntity.ts"
import * as ReadOnly from "../src/ReadOnly.ts"

export const Added = Schema.TaggedStruct("Added", { amount: Schema.Int })
const Renamed = Schema.TaggedStruct("Renamed", { name: Schema.String, at: Schema.Date })

export class Negative extends Schema.TaggedError<Negative>()("Negative", { total: Schema.Int }) {}

/** A service that a handler depends on. */
export class Limits extends Context.Service<Limits, { readonly max: number }>()("test/Limits") {}

/** The entity of the tests. */
export const Counter = PersistentEntity.make("Counter", {
  state: Schema.Struct({ total: Schema.Int, name: Schema.String }),
  initialState: { total: 0, name: "" },
  events: [Added, Renamed],
  commands: [
    Rpc.make("Add", { payload: { amount: Schema.Int }, success: Schema.Int, error: Negative }),
    Rpc.make("AddAll", { payload: { amounts: Schema.Array(Schema.Int) }, success: Schema.Int }),
    Rpc.make("Rename", { payload: { name: Schema.String } }),
    Rpc.make("Total", { success: Schema.Int }),
    Rpc.make("Name", { success: Schema.String }),
    Rpc.make("Limited", { payload: { amount: Schema.Int }, success: Schema.Int, error: Negative }),
    Rpc.make("Boom"),
    Rpc.make("Expect", { payload: { total: Schema.Int } }),
    ReadOnly.local(Rpc.make("Peek", { success: Schema.Int })),
    ReadOnly.fresh(Rpc.make("Look", { success: Schema.Int })),
    ReadOnly.fresh(Rpc.make("LookPositive", { success: Schema.Int, error: Negative }))
  ]
})

export const behavior = Counter.behavior({
  apply: (state, event) =>
    event._tag === "Added" ? { ...state, total: state.total + event.amount } : { ...state, name: event.name },
  commands: {
    Add: ({ total }, { amount }) =>
      total + amount < 0
        ? Decision.reject(new Negative({ total }))
        : Decision.persist({ _tag: "Added", amount }, (after) => after.total),
    AddAll: (_, { amounts }) =>
      Decision.persist(
        amounts.map((amount) => Added.make({ amount })),
        (after) => after.total
      ),
    Rename: (_, { name }) => Decision.persist({ _tag: "Renamed", name, at: new Date(0) }),
    Total: ({ total }) => Decision.reply(total),
    Name: ({ name }) => Decision.reply(name),
    Limited: ({ total }, { amount }) =>
      Effect.gen(function* () {
        const { max } = yield* Limits
        if (total + amount > max) return yield* new Negative({ total })
        return Decision.persist(Added.make({ amount }), (after) => after.total)
      }),
    Boom: () => {
      throw new Error("boom")
    },
    Expect: (state, { total }) => {
      if (state.total !== total) throw new Error(`${state.total} is not ${total}`)
      return Decision.reply(undefined)
    },
    Peek: ({ total }) => Decision.reply(total),
    Look: ({ total }) => Decision.reply(total),
    LookPositive: ({ total }) => (total < 0 ? Decision.reject(new Negative({ total })) : Decision.reply(total))
  }
})
