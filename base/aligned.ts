/**
 * Memory for reads and writes past the page cache (O_DIRECT), which want page-aligned addresses. Node.js promises those
 * nowhere, but the memory of WebAssembly is whole pages.
 */

// Node.js has it; its type declarations leave it to the DOM's.
declare const WebAssembly: {
  readonly Memory: new (size: {
    initial: number
    maximum: number
    shared?: boolean
  }) => { readonly buffer: ArrayBufferLike }
}

const WASM_PAGE = 64 * 1024
/** What every device and file system accepts as the unit of offset, length and address. */
export const DIRECT_UNIT = 4096

const made = new WeakSet<ArrayBufferLike>()

/** At least `bytes`, rounded up to 64 KiB; zeros. Costs address space besides: use it again rather than make another. */
export function pageAligned(bytes: number): Uint8Array {
  const pages = Math.ceil(bytes / WASM_PAGE)
  const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages })
  made.add(buffer)
  return new Uint8Array(buffer)
}

/** The same for more than one thread. */
export function pageAlignedShared(bytes: number): SharedArrayBuffer {
  const pages = Math.ceil(bytes / WASM_PAGE)
  const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true })
  made.add(buffer)
  return buffer as SharedArrayBuffer
}

/** True for a view that starts on a 4096-byte step of memory from `pageAligned`. */
export function isAligned(view: Uint8Array): boolean {
  return made.has(view.buffer) && view.byteOffset % DIRECT_UNIT === 0
}
