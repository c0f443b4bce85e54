import { parentPort, workerData } from 'node:worker_threads'
import { compressBlock } from './block-codec.ts'

/** A compression thread: takes the content of a block, gives back the content's memory and the block as stored. */

const { level } = workerData as { readonly level: number }

parentPort?.on('message', (content: Uint8Array<ArrayBuffer>) => {
  const { bytes, plain } = compressBlock(content, level)
  // Memory is handed over, never copied; a block that is stored plain is its content.
  if (plain) parentPort?.postMessage({ content }, [content.buffer])
  else {
    const packed = bytes as Uint8Array<ArrayBuffer>
    parentPort?.postMessage({ content, packed }, [content.buffer, packed.buffer])
  }
})
