/** Why a broker could not be used. Each side turns it into a code of its own. */
export type BrokerTrouble = 'address' | 'lost' | 'refused' | 'tls' | 'wrong-answer' | 'flood'

export class BrokerFailure extends Error {
  override readonly name = 'BrokerFailure'
  readonly trouble: BrokerTrouble

  constructor(trouble: BrokerTrouble, sentence: string, cause?: unknown) {
    super(sentence, { cause })
    this.trouble = trouble
  }

  /** True when the next try may go better by itself. */
  get passing(): boolean {
    return this.trouble === 'lost' || this.trouble === 'flood'
  }
}
