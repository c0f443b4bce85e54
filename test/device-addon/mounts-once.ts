import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { nodeFiles } from '../../base/durable.ts'
import type { AddonStatement } from '../../bundle/addon.ts'
import { openAddon } from '../../bundle/addon-file.ts'
import { fileSource } from '../../bundle/file-source.ts'
import { KernelMounts } from '../../device/addons/mounts.ts'
import { AddonStore } from '../../device/addons/store.ts'
import { Unlocking } from '../../device/addons/unlock.ts'
import { realProcesses } from '../../device/agent/real.ts'
import { walkRoots } from '../../keys/root.ts'
import { ROOT } from './made.ts'

// Run by mounts.test.ts in a mount namespace of its own. Arguments: scratch folder, "systemd" or "overlay", add-on files.
// Prints what was seen after each step, as one line of JSON.

const [, , folder = '', mode, ...files] = process.argv
const never = new AbortController().signal
const systemd = mode === 'systemd'
const run = systemd ? '/run' : join(folder, 'run')
const usr = systemd ? '/usr' : join(folder, 'usr')
const processes = realProcesses('')
const store = new AddonStore(join(folder, 'data/addons'), nodeFiles)
const mounts = new KernelMounts({
  ...{ processes, systemd, run, usr, mapper: join(folder, 'mapper'), sysext: async () => systemd },
})
const trusted = walkRoots([ROOT])
const seen: Record<string, unknown> = {}
const look = async (step: string) => {
  const text = (path: string) => (existsSync(join(usr, path)) ? readFileSync(join(usr, path), 'utf8').trim() : null)
  seen[step] = {
    active: await mounts.active(),
    one: text('share/one'),
    two: text('share/two'),
    both: text('share/both'),
  }
}

if (!systemd) mkdirSync(join(usr, 'share'), { recursive: true })
if (!systemd) writeFileSync(join(usr, 'share/both'), 'system')
const statements: AddonStatement[] = []
for (const file of files) {
  const source = await fileSource(file)
  const head = await openAddon(source, trusted)
  await store.add(head, source, never)
  await source.close()
  statements.push(head.statement)
}
const merge = async (step: string, wanted: typeof statements) => {
  const failed = await mounts.merge(wanted, (name) => store.image(name))
  seen[`${step} failed`] = [...failed].map(([name, error]) => `${name}: ${error.message}`)
  await look(step)
}
await merge('both', statements)
await merge('both again', statements)
await merge('one', statements.slice(0, 1))
await merge('none', [])
// A byte of the image changed on the disk: dm-verity refuses.
const image = store.image('first')
const bytes = readFileSync(image)
bytes[300] = (bytes[300] ?? 0) ^ 1
writeFileSync(image, bytes)
await merge('changed', statements)
await merge('end', [])

const uptime = join(folder, 'uptime')
writeFileSync(uptime, '1000.00 1.00\n')
const unlocking = new Unlocking({ processes, run: join(folder, 'memory'), usr, uptime })
await unlocking.begin(600)
writeFileSync(join(usr, 'share/written'), 'x')
seen['unlocked'] = [existsSync(join(usr, 'share/written')), (await unlocking.until()) !== undefined]
seen['not due'] = await unlocking.endIfDue()
writeFileSync(uptime, '1600.00 1.00\n')
seen['due'] = await unlocking.endIfDue()
seen['locked'] = [existsSync(join(usr, 'share/written')), (await unlocking.until()) !== undefined]
console.log(JSON.stringify(seen))
