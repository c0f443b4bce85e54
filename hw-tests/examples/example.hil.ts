import { execFile, spawn } from 'node:child_process'
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'
import { openKit } from '../harness/kit.ts'

const run = promisify(execFile)
const PLACES = `import { type BoardPlace, x86Box } from 'bistable/hil/places'
const outlet = (order: string) => ['sh', '-c', 'echo ' + order + ' >' + process.env['OUTLET']]
const here = import.meta.dirname
process.env['OUTLET'] = here + '/outlet'
const power = { driver: 'command', on: outlet('on'), off: outlet('off'), state: ['cat', here + '/outlet'] } as const
export const PLACES = {
  'bench-1': {
    ...x86Box({ console: '/dev/ttyS0', power, host: '127.0.0.1' }),
    console: { driver: 'command', argv: [process.execPath, here + '/fake-board.mjs', here + '/outlet'] },
    offMs: 200,
  },
} satisfies Readonly<Record<string, BoardPlace>>
`
const BENCH = `import { expect, hil, LabError } from 'bistable/hil'
hil.override('device', {
  make: async ({ powerOn: machine }) => {
    if (machine === undefined) throw new LabError('this test is for a board of HIL_PLACES')
    return { disk: '', machine, ready: async (dut) => void (await dut.sees(/running slot=a/, 60_000)) }
  },
})
hil('is up', async ({ dut }) => {
  expect(dut.console.state).toBe('userspace')
  // @ts-expect-error there are two slots
  if (!dut.on) await expect(dut).toBoot({ slot: 'c' })
})
`

/** A bench in the project: a board that is a program. */
async function bench(project: string): Promise<void> {
  await cp(join(import.meta.dirname, '../fixtures/fake-board.mjs'), join(project, 'fake-board.mjs'))
  await writeFile(join(project, 'outlet'), 'off\n')
  await writeFile(join(project, 'places.ts'), PLACES)
  await writeFile(join(project, 'bench.hil.ts'), BENCH)
}

const root = resolve(import.meta.dirname, '..', '..')

it('the example is a project of its own: it uses the package as it is published, and tests a board that is not ours', async () => {
  // The kit's making has fetched a kernel.
  await openKit()
  const boot = join(root, '.cache', 'kernel', 'boot')
  const kernel = (await readdir(boot)).find((name) => name.startsWith('vmlinuz-'))
  const folder = await mkdtemp(join(tmpdir(), 'bistable-example-'))
  try {
    const project = join(folder, 'project')
    await cp(join(import.meta.dirname, 'busybox-board'), project, { recursive: true })
    // As `npm init` and `npm pkg set type=module` leave it.
    await writeFile(join(project, 'package.json'), '{ "name": "boards", "type": "module" }\n')
    const modules = join(project, 'node_modules')
    const staged = join(folder, 'staged')
    for (const made of [modules, staged]) await mkdir(made, { recursive: true })
    for (const name of ['package.json', 'bistable.mjs']) await cp(join(root, name), join(staged, name))
    await run(process.execPath, [join(root, 'scripts/build-hil.mjs'), join(staged, 'dist/hil')], { cwd: root })
    // What the package's own list leaves out is not there, as for everybody who installs it.
    await run('npm', ['pack', '--ignore-scripts', '--pack-destination', folder], { cwd: staged })
    const archive = (await readdir(folder)).find((name) => name.endsWith('.tgz')) ?? ''
    await run('tar', ['-xzf', join(folder, archive), '-C', modules])
    await rename(join(modules, 'package'), join(modules, 'bistable'))
    for (const name of ['vitest', 'serialport', '@types'])
      await symlink(join(root, 'node_modules', name), join(modules, name))
    const { HIL_RUN: _, HIL_KIT: __, HIL_PLACE: ___, GITHUB_STEP_SUMMARY: ____, ...env } = process.env
    const vitest = async (args: readonly string[], more: NodeJS.ProcessEnv): Promise<string> => {
      const child = spawn(process.execPath, [join(modules, 'vitest/vitest.mjs'), 'run', ...args], {
        cwd: project,
        env: { ...env, ...more },
        stdio: ['ignore', 'pipe', 'pipe'],
      })
      let said = ''
      for (const stream of [child.stdout, child.stderr])
        stream.on('data', (bytes: Buffer) => {
          said += bytes.toString()
        })
      expect(await new Promise((done) => child.on('close', done)), said).toBe(0)
      return said
    }
    const said = await vitest([], { KERNEL: join(boot, kernel ?? '') })
    expect(said).toContain('hil: 2 passed, 0 failed, 0 not run (lab), 0 skipped')
    const page = await readFile(join(project, 'out/hil/last/index.html'), 'utf8')
    expect(page).toContain('board: services are up')

    // A board on a bench of one's own: its places in TypeScript, its lease, its power and its console.
    await bench(project)
    const onBench = { HIL_PLACES: join(project, 'places.ts'), HIL_PLACE: 'bench-1', HIL_LOCKS: join(folder, 'locks') }
    expect(await vitest(['bench.hil.ts'], onBench)).toContain(
      'hil: 1 passed, 0 failed, 0 not run (lab), 0 skipped on bench-1',
    )
    await run(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', project])
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
})
