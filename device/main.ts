import { addonVerbs } from './addons/cli.ts'
import { deviceVerbs } from './cli.ts'
import { runDevice } from './run.ts'

/** Entry of the device's whole program, bundled into one file: `/usr/lib/bistable/agent/bistable.mjs`. */

await runDevice([...deviceVerbs, ...addonVerbs])
// An agent that gave up because something below it hangs must not be kept alive by what hangs.
if (process.argv[2] === 'agent') setTimeout(() => process.exit(), 2000).unref()
