import { dirname } from 'node:path'
import type { Files } from '../../base/durable.ts'

/** A file system in memory that knows what a power cut may take: data that was not flushed, names that were not. */

type Op =
  | { readonly kind: 'write'; readonly path: string; readonly bytes: Uint8Array }
  | { readonly kind: 'sync' | 'remove' | 'syncDir'; readonly path: string }
  | { readonly kind: 'rename'; readonly from: string; readonly to: string }

export class MemoryFiles implements Files {
  readonly log: Op[] = []
  readonly #start: ReadonlyMap<string, Uint8Array>
  #now: Map<string, Uint8Array>
  /** Called before every change; throws to end the world there. */
  onChange: (op: string, path: string) => void = () => undefined

  constructor(start: ReadonlyMap<string, Uint8Array> = new Map()) {
    this.#start = new Map(start)
    this.#now = new Map(start)
  }

  get content(): ReadonlyMap<string, Uint8Array> {
    return this.#now
  }

  async read(path: string, limit: number): Promise<Uint8Array | undefined> {
    const bytes = this.#now.get(path)
    if (bytes !== undefined && bytes.length > limit) throw new RangeError(`${path} has ${bytes.length} bytes`)
    return bytes === undefined ? undefined : Uint8Array.from(bytes)
  }
  async write(path: string, bytes: Uint8Array): Promise<void> {
    this.#change({ kind: 'write', path, bytes: Uint8Array.from(bytes) })
  }
  async sync(path: string): Promise<void> {
    this.#change({ kind: 'sync', path })
  }
  async rename(from: string, to: string): Promise<void> {
    this.#change({ kind: 'rename', from, to })
  }
  async syncDir(path: string): Promise<void> {
    this.#change({ kind: 'syncDir', path })
  }
  async makeDir(): Promise<void> {}
  async remove(path: string): Promise<void> {
    this.#change({ kind: 'remove', path })
  }
  async removeTree(path: string): Promise<void> {
    for (const inside of [...this.#now.keys()].filter((name) => name.startsWith(`${path}/`))) await this.remove(inside)
  }

  #change(op: Op): void {
    this.onChange(op.kind, op.kind === 'rename' ? op.to : op.path)
    this.log.push(op)
    apply(this.#now, op)
  }

  /**
   * Every disk that a cut after the first `count` operations may leave: each unflushed content whole, torn at any
   * sector, torn inside one, or empty; directory changes kept in order, any number of the last ones lost.
   */
  *crashes(count: number): Generator<MemoryFiles> {
    type Inode = { bytes: Uint8Array; safe: boolean }
    const names = new Map<string, Inode>()
    for (const [path, bytes] of this.#start) names.set(path, { bytes, safe: true })
    const safeNames = new Map(names)
    let pending: { dir: string; act: (names: Map<string, Inode>) => void }[] = []
    for (const op of this.log.slice(0, count)) {
      if (op.kind === 'write') {
        const inode = { bytes: op.bytes, safe: false }
        names.set(op.path, inode)
        pending.push({ dir: dirname(op.path), act: (n) => n.set(op.path, inode) })
      } else if (op.kind === 'sync') {
        const inode = names.get(op.path)
        if (inode !== undefined) inode.safe = true
      } else if (op.kind === 'rename') {
        const act = (n: Map<string, Inode>) => {
          const inode = n.get(op.from)
          if (inode === undefined) return
          n.delete(op.from)
          n.set(op.to, inode)
        }
        act(names)
        pending.push({ dir: dirname(op.to), act })
      } else if (op.kind === 'remove') {
        names.delete(op.path)
        pending.push({ dir: dirname(op.path), act: (n) => n.delete(op.path) })
      } else {
        for (const { act } of pending.filter((p) => p.dir === op.path)) act(safeNames)
        pending = pending.filter((p) => p.dir !== op.path)
      }
    }
    for (let kept = 0; kept <= pending.length; kept++) {
      const disk = new Map(safeNames)
      for (const { act } of pending.slice(0, kept)) act(disk)
      const unsafe = [...disk].filter(([, inode]) => !inode.safe)
      const plain = new Map([...disk].map(([path, inode]) => [path, inode.bytes]))
      yield new MemoryFiles(plain)
      for (const [path, { bytes }] of unsafe) {
        for (let at = 0; at < bytes.length; at += 512) {
          yield new MemoryFiles(new Map(plain).set(path, bytes.slice(0, at)))
          const torn = Uint8Array.from(bytes)
          torn.fill(0, at, Math.min(at + 512, torn.length))
          yield new MemoryFiles(new Map(plain).set(path, torn))
          yield new MemoryFiles(new Map(plain).set(path, bytes.slice(0, at + 7)))
        }
      }
    }
  }
}

function apply(disk: Map<string, Uint8Array>, op: Op): void {
  if (op.kind === 'write') disk.set(op.path, op.bytes)
  else if (op.kind === 'remove') disk.delete(op.path)
  else if (op.kind === 'rename') {
    const bytes = disk.get(op.from)
    if (bytes === undefined) throw new Error(`rename of missing ${op.from}`)
    disk.delete(op.from)
    disk.set(op.to, bytes)
  }
}
