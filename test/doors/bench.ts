import type { ByteSource } from '../../base/source.ts'
import { openBundle } from '../../bundle/reader.ts'
import type { BundleHead } from '../../bundle/types.ts'
import { install } from '../../device/install/install.ts'
import type { InstallRequest, ReuseSource } from '../../device/install/types.ts'
import { slotFault } from '../../device/install/verify.ts'
import type { TrustedRoots } from '../../keys/types.ts'
import { codeOfAsync } from '../codes.ts'
import { Machine, ModelDevice } from '../device-install/model.ts'

/** A slot pair to install into, and everything an install decided and wrote there. */

export interface Slots {
  readonly boot: Uint8Array
  readonly rootfs: Uint8Array
}

export interface Run {
  /** `accepted`, or the code of the refusal. */
  readonly code: string
  /** What was decided, in order, then every write and flush of each device in order: lines of text. */
  readonly journal: string
  /** What the slots hold afterwards. */
  readonly slots: Slots
  readonly armed: boolean
  /** True when the slots hold the release, by their roots. */
  readonly holds: boolean
}

export const EMPTY: Slots = { boot: Buffer.alloc(512 * 1024, 0xee), rootfs: Buffer.alloc(4096 * 500, 0xee) }

export interface RunPlan {
  readonly trusted: TrustedRoots
  readonly slots?: Slots
  readonly reuse?: (head: BundleHead) => readonly ReuseSource[]
  /** Stops the install after this many chunks. */
  readonly cancelAfter?: number
}

/** Opens the bundle behind a door and installs it. Time stands still for the writer, so that flushes follow bytes. */
export async function runInstall(open: () => Promise<ByteSource>, plan: RunPlan): Promise<Run> {
  const machine = new Machine()
  const from = plan.slots ?? EMPTY
  const slot = {
    boot: new ModelDevice('boot', Buffer.from(from.boot), machine),
    rootfs: new ModelDevice('rootfs', Buffer.from(from.rootfs), machine),
  }
  const journal: string[] = []
  const note = (line: string): void => void journal.push(line)
  /** By device: what is under way on the one while the other is filled follows the clock, not the door. */
  const writes = (name: string): string[] =>
    machine.events.flatMap((event) =>
      event.device === name && (event.kind === 'write' || event.kind === 'flush')
        ? [`${name} ${event.kind} ${event.offset} ${event.length}`]
        : [],
    )
  const happen = (kind: 'invalidate' | 'beforeArm' | 'arm') => async () => machine.happen({ kind, device: '' })
  const abort = new AbortController()
  let chunks = 0
  let head: BundleHead | undefined
  let source: ByteSource | undefined
  const code = await codeOfAsync(async () => {
    source = await open()
    head = await openBundle(source, { trusted: plan.trusted })
    const request: InstallRequest = {
      source,
      head,
      slot,
      signal: abort.signal,
      reuse: plan.reuse?.(head) ?? [],
      journal: note,
      now: () => 0,
      onProgress: ({ phase }) => {
        if (phase === 'fill' && ++chunks === plan.cancelAfter) abort.abort(new Error('enough'))
      },
      invalidate: happen('invalidate'),
      beforeArm: happen('beforeArm'),
      arm: happen('arm'),
    }
    await install(request)
  })
  await source?.close()
  journal.push(...writes('boot'), ...writes('rootfs'))
  const slots = { boot: slot.boot.medium, rootfs: slot.rootfs.medium }
  const armed = machine.events.some(({ kind }) => kind === 'arm')
  return { code, journal: journal.join('\n'), slots, armed, holds: head !== undefined && (await holds(head, slot)) }
}

async function holds(head: BundleHead, slot: Readonly<Record<'boot' | 'rootfs', ModelDevice>>): Promise<boolean> {
  for (const image of head.statement.images) if ((await slotFault(slot[image.name], image)) !== undefined) return false
  return true
}
