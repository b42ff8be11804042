import { Decision, PersistentEntity } from "@effect-cassandra/entity"
import { Journal } from "@effect-cassandra/journal/Journal"
import { Effect, Layer, Schema } from "effect"
import { Rpc } from "effect/rpc"
const C = PersistentEntity.make("C", { state: Schema.Int, initialState: 0, events: [Schema.TaggedStruct("Added", { n: Schema.Int })],
  commands: [Rpc.make("Add", { payload: { n: Schema.Int }, success: Schema.Int }), Rpc.make("Boom")] })
const live = C.layer({ apply: (s, e) => s + e.n, commands: { Add: (_, { n }) => Decision.persist({ _tag: "Added", n }, (s) => s), Boom: () => { throw new Error("boom") } } })
await Effect.runPromise(Effect.gen(function* () {
  const c = (yield* C)("a")
  console.log(yield* c.Add({ n: 1 }))
  console.log((yield* Effect.exit(c.Boom()))._tag)
  console.log(yield* c.Add({ n: 1 }))
}).pipe(Effect.provide(live.pipe(Layer.provide(Journal.layerMemory())))))
