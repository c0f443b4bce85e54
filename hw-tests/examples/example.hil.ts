import { execFile, spawn } from 'node:child_process'
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'
import { openKit } from '../harness/kit.ts'

const run = promisify(execFile)
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
    for (const name of ['vitest', 'serialport']) await symlink(join(root, 'node_modules', name), join(modules, name))
    const { HIL_RUN: _, HIL_KIT: __, HIL_PLACE: ___, GITHUB_STEP_SUMMARY: ____, ...env } = process.env
    const child = spawn(process.execPath, [join(modules, 'vitest/vitest.mjs'), 'run'], {
      cwd: project,
      env: { ...env, KERNEL: join(boot, kernel ?? '') },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let said = ''
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (bytes: Buffer) => {
        said += bytes.toString()
      })
    expect(await new Promise((done) => child.on('close', done)), said).toBe(0)
    expect(said).toContain('hil: 2 passed, 0 failed, 0 not run (lab), 0 skipped')
    const page = await readFile(join(project, 'out/hil/last/index.html'), 'utf8')
    expect(page).toContain('board: services are up')
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
})
