import { Processor } from "@effect-cassandra/read-side"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { Effect } from "effect"
import { Account, Closed, Deposited, Opened, Withdrawn } from "./Account.ts"

const balance = (account: string, balance: number) =>
  cql`INSERT INTO balances (account, balance) VALUES (${account}, ${BigInt(balance)})`

/** The accounts of an owner, with their balances: a row per account, summed when it is read. */
export const AccountsOfOwner = Processor.make("accounts-of-owner", {
  entityType: Account.type,
  events: [Opened, Deposited, Withdrawn, Closed],
  tables: [
    "CREATE TABLE IF NOT EXISTS accounts (owner text, account text, PRIMARY KEY (owner, account))",
    "CREATE TABLE IF NOT EXISTS balances (account text PRIMARY KEY, balance bigint, closed boolean)"
  ],
  handlers: {
    Opened: ({ owner }, { entityId }) => [
      cql`INSERT INTO accounts (owner, account) VALUES (${owner}, ${entityId})`,
      balance(entityId, 0)
    ],
    Deposited: (event, { entityId }) => balance(entityId, event.balance),
    Withdrawn: (event, { entityId }) => balance(entityId, event.balance),
    Closed: (_, { entityId }) => cql`UPDATE balances SET closed = ${true} WHERE account = ${entityId}`
  }
})

const line = (account: string, sequence: number, stamp: number, text: string, balance: number) =>
  cql`INSERT INTO statements (account, sequence, at, text, balance)
      VALUES (${account}, ${BigInt(sequence)}, ${new Date(stamp / 1000)}, ${text}, ${BigInt(balance)})`

const dollars = (cents: number) => `$${(cents / 100).toFixed(2)}`

/** The statement of an account: a line for each thing that happened, the newest first. */
export const AccountStatement = Processor.make("account-statement", {
  entityType: Account.type,
  events: [Opened, Deposited, Withdrawn, Closed],
  tables: [
    `CREATE TABLE IF NOT EXISTS statements (
       account text, sequence bigint, at timestamp, text text, balance bigint,
       PRIMARY KEY (account, sequence)) WITH CLUSTERING ORDER BY (sequence DESC)`
  ],
  handlers: {
    Opened: ({ owner }, { entityId, sequence, stamp }) => line(entityId, sequence, stamp, `opened by ${owner}`, 0),
    Deposited: ({ balance, cents }, { entityId, sequence, stamp }) =>
      line(entityId, sequence, stamp, `${dollars(cents)} deposited`, balance),
    Withdrawn: ({ balance, cents }, { entityId, sequence, stamp }) =>
      line(entityId, sequence, stamp, `${dollars(cents)} withdrawn`, balance),
    Closed: (_, { entityId, sequence, stamp }) => line(entityId, sequence, stamp, "closed", 0)
  }
})

/** The open accounts of an owner and what is in them together, in cents. */
export const accountsOf = Effect.fnUntraced(function* (owner: string) {
  const session = yield* CassandraSession
  const owned = yield* session.execute<{ account: string }>(cql`SELECT account FROM accounts WHERE owner = ${owner}`)
  const rows = yield* Effect.forEach(
    owned,
    ({ account }) =>
      session.execute<{ account: string; balance: bigint; closed: boolean | null }>(
        cql`SELECT account, balance, closed FROM balances WHERE account = ${account}`
      ),
    { concurrency: 20 }
  )
  const accounts = rows
    .flat()
    .filter(({ closed }) => closed !== true)
    .map(({ account, balance }) => ({ account, balance: Number(balance) }))
  return { owner, accounts, total: accounts.reduce((sum, { balance }) => sum + balance, 0) }
})

/** A page of a statement: lines before a sequence number, the newest first. */
export const statementOf = Effect.fnUntraced(function* (account: string, before: number, limit: number) {
  const session = yield* CassandraSession
  const rows = yield* session.execute<{ sequence: bigint; at: Date; text: string; balance: bigint }>(
    cql`SELECT sequence, at, text, balance FROM statements
        WHERE account = ${account} AND sequence < ${BigInt(before)} LIMIT ${limit}`
  )
  const lines = rows.map(({ at, balance, sequence, text }) => ({
    sequence: Number(sequence),
    at: at.toISOString(),
    text,
    balance: Number(balance)
  }))
  return { account, lines, ...(lines.length === limit ? { next: lines.at(-1)!.sequence } : {}) }
})
