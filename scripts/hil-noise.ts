import { NOISE_COMMANDS, NOISE_LEVELS } from '../hw-tests/harness/noise.ts'
import { ptyShell } from '../hw-tests/harness/pty-shell.ts'

// npm run hil-noise -- [RUNS] [SEED]: commands over a console that kernel lines disturb, RUNS (100) per level, against the
// truth. Prints a row per level; ends with 1 when a single answer was not the truth.
const [runs = 100, seed = 20261121] = process.argv.slice(2).map(Number)
let right = 0
let asked = 0
console.log(`seed ${seed}; a kernel line per so many bytes: right of ${runs}, milliseconds per command`)
for (const every of NOISE_LEVELS) {
  const { shell, close } = ptyShell(every, seed)
  let good = 0
  await shell.open({ timeoutMs: 120_000 })
  const start = performance.now()
  for (let run = 0; run < runs; run++) {
    const [command, truth] = NOISE_COMMANDS[run % NOISE_COMMANDS.length] ?? ['', { code: 0, output: '' }]
    const answer = await shell.run(command, { timeoutMs: 120_000 }).catch((error: unknown) => {
      console.log(error instanceof Error ? error.message.split('\n')[0] : error)
      return { code: -1, output: '' }
    })
    if (answer.code === truth.code && answer.output === truth.output) good++
    else console.log(`wrong: ${command}: ${JSON.stringify(answer).slice(0, 200)}`)
  }
  const each = (performance.now() - start) / runs
  close()
  right += good
  asked += runs
  console.log(`${every === undefined ? 'none' : every}: ${good} of ${runs}, ${each.toFixed(0)} ms`)
}
console.log(`${right} of ${asked} right`)
process.exit(right === asked ? 0 : 1)
